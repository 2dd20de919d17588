"""The contestants: what people run instead of memvec, and memvec.

Each is a function of a `Task` that loads what it needs and returns a function of texts, which computes their vectors
once and says how long it took. The clock covers what a contestant does with prompts until the vectors are in host
memory; the reference and sentence-transformers take text, so tokenising is inside theirs (well below 1 % on a
processor). memvec's clock is its own: the predict stage, with its probe, its journal and its flushes to disk.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, BatchEncoding, PreTrainedModel

from memvec.model.pooling import last_token
from memvec.process import keep_freed_memory
from memvec.trainer.metrics import peak_memory_bytes
from tests.benchmarks.ablation import ABLATIONS
from tests.benchmarks.openvino import openvino
from tests.benchmarks.task import Task, quiet_libraries
from tests.benchmarks.turn import Run, Turn, fastest, padding_share, timed
from tests.helpers.reference import reference_vectors


@dataclass(frozen=True)
class Contestant:
    """How a contestant is run.

    Args:
        title: One line that says what it does.
        build: Loads it.
        packages: What must be installed, as imported.
        devices: What it runs on.
        on_subset: Whether it is too slow for all texts and computes the task's subset.
    """

    title: str
    build: Callable[[Task], Run]
    packages: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    on_subset: bool = False

    def rows(self, task: Task) -> Sequence[int]:
        """Returns the rows it computes."""
        return task.subset if self.on_subset else range(len(task.texts))


def compete(contestant: Contestant, task: Task) -> Callable[[Sequence[int]], Turn]:
    """Builds a contestant; returns the function that computes rows of the task's texts once.

    Of the vectors it returns those of the task's subset.
    """
    quiet_libraries()
    torch.set_num_threads(task.threads)
    run = contestant.build(task)
    subset = set(task.subset)

    def turn(rows: Sequence[int]) -> Turn:
        result = run([task.texts[row] for row in rows])
        kept = [at for at, row in enumerate(rows) if row in subset]
        if task.device == "cuda":
            torch.cuda.empty_cache()  # the next contestant shares the device
        peak = peak_memory_bytes(torch.device(task.device))
        return replace(result, vectors=result.vectors[kept], peak_memory_bytes=peak)

    return turn


def truth(task: Task) -> Callable[[], NDArray[np.float32]]:
    """Builds the reference in float32, whatever the task's precision; returns what computes the subset's vectors."""
    quiet_libraries()
    torch.set_num_threads(task.threads)
    model, tokenizer = full_model(task, torch.float32), task.tokenizer()
    texts = [task.texts[row] for row in task.subset]
    return lambda: reference_vectors(model, tokenizer, texts, template=task.template).cpu().numpy()


def reference(task: Task) -> Run:
    """One entry at a time through the full model, all layers' states kept: tests/helpers/reference.py as it stands."""
    model, tokenizer = full_model(task, task.dtype), task.tokenizer()

    def run(texts: Sequence[str]) -> Turn:
        compute = partial(reference_vectors, model, tokenizer, texts, template=task.template)
        vectors, seconds = timed(task, lambda: compute().cpu())
        return Turn(vectors.numpy(), seconds, padding_share=0.0)

    return run


def padded(task: Task, *, batch_size: int = 8) -> Run:
    """Batches of 8 in given order through the full model with its head; right padding and attention mask."""
    model, tokenizer = full_model(task, task.dtype), task.tokenizer()

    @torch.inference_mode()
    def compute(batches: Iterable[BatchEncoding]) -> torch.Tensor:
        vectors = []
        for batch in batches:
            input_ids, mask = batch["input_ids"].to(task.device), batch["attention_mask"].to(task.device)
            output = model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
            vectors.append(last_token(output.hidden_states[-1], mask.sum(1)).float())
        return torch.cat(vectors).cpu()

    def run(texts: Sequence[str]) -> Turn:
        prompts = task.prompts(texts)
        parts = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
        batches = [tokenizer(part, padding=True, padding_side="right", return_tensors="pt") for part in parts]
        vectors, seconds = timed(task, lambda: compute(batches))
        return Turn(vectors.numpy(), seconds, padding_share(batch["attention_mask"] for batch in batches))

    return run


def sentence_transformers(task: Task, *, chat_template: bool, attention: str | None = None) -> Run:
    """The library's own way to embed with a causal model; sorts by length itself. The best of several batch sizes.

    Args:
        task: What to run.
        chat_template: Whether it puts every prompt into the tokenizer's chat template, which it does by default;
            the vectors are then those of other, longer prompts.
        attention: transformers' name of the attention implementation; None is the model's default.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    told = {} if chat_template else {"modality_config": plain, "module_output_name": "token_embeddings"}
    kernels = {} if attention is None else {"attn_implementation": attention}
    transformer = Transformer(task.model, model_kwargs={"dtype": task.dtype, **kernels}, **told)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling], device=task.device)
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    masks: list[torch.Tensor] = []
    transformer.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[0]["attention_mask"]))

    def encode(texts: Sequence[str], batch_size: int) -> Turn:
        masks.clear()
        options = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        vectors, seconds = timed(task, lambda: model.encode(task.prompts(texts), **options).float().cpu())
        return Turn(vectors.numpy(), seconds, padding_share(masks), {"batch_size": batch_size})

    sizes = (8, 16, 32, 64) if task.device == "cpu" else (16, 64, 256, 512)
    return partial(encode, batch_size=fastest(task, sizes, encode, entries=sizes[-1]))


def memvec(task: Task, *, name: str = "memvec", overrides: Sequence[str] = ()) -> Run:
    """`memvec.predict` as a user runs it; the seconds are those of warm-up and predict stage, as its metrics say."""
    from memvec import compose, load, predict

    keep_freed_memory()  # as the command line does
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # as conf/predict.yaml does for the command line
    folder, data = task.scratch / name, task.scratch / f"{name}.jsonl"
    settings = {
        "data.path": data,
        "data.id_column": "null",
        "model": "hub",
        "model.name_or_path": task.model,
        "output_dir": folder,
        "trainer.accelerator": "gpu" if task.device == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.precision": task.precision,
        "trainer.enable_progress_bar": "false",
    }
    overrides = [*(f"{name}={value}" for name, value in settings.items()), *overrides, *task.overrides]

    def run(texts: Sequence[str]) -> Turn:
        with data.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()  # the model of the run before, which the others load once for all runs
        summary = predict(compose(overrides))
        metrics, compile_seconds = summary.metrics, summary.manifest["notes"]["compile_seconds"]
        vectors = load(folder)["vector"][:].numpy()
        details = {"metrics": metrics, "compile_seconds": compile_seconds, "overrides": list(task.overrides)}
        seconds = metrics["warm_up_seconds"] + metrics["predict_seconds"]
        warm_up = metrics["warm_up_seconds"]
        return Turn(vectors, seconds, metrics["padding_share"], details, warm_up_seconds=warm_up)

    return run


def without(task: Task, *, choice: str) -> Run:
    """memvec with one choice switched off."""
    ablation = ABLATIONS[choice]
    ablation.replace()
    return memvec(task, name=f"without-{choice.replace(' ', '-')}", overrides=ablation.overrides)


CONTESTANTS = {
    "reference": Contestant("one at a time, full model, all hidden states", reference, on_subset=True),
    "padded": Contestant("batches of 8 in given order, full model", padded, on_subset=True),
    "sentence-transformers": Contestant(
        "sentence-transformers, last-token pooling, told not to use the chat template",
        partial(sentence_transformers, chat_template=False),
        ("sentence_transformers",),
    ),
    "sentence-transformers-as-it-comes": Contestant(
        "sentence-transformers, last-token pooling, as it comes",
        partial(sentence_transformers, chat_template=True),
        ("sentence_transformers",),
        on_subset=True,
    ),
    "openvino": Contestant("OpenVINO, length-sorted batches, backbone", openvino, ("openvino",), devices=("cpu",)),
    "memvec-compiled": Contestant(
        "memvec, model.compile=true", partial(memvec, name="memvec-compiled", overrides=["model.compile=true"])
    ),
    "memvec": Contestant("memvec", memvec),
}
WITHOUT = {
    f"without {choice}": Contestant(f"memvec without {ablation.label}", partial(without, choice=choice))
    for choice, ablation in ABLATIONS.items()
}
ALL = CONTESTANTS | WITHOUT


def full_model(task: Task, dtype: torch.dtype) -> PreTrainedModel:
    """Loads the model whole, on the task's device; once a process."""
    return _full_model(task.model, dtype, task.device)


@cache
def _full_model(location: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    straight_there = {"device_map": device} if device == "cuda" else {}  # not by way of the host's memory
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **straight_there)
    return model.eval()


def forget_models() -> None:
    """Lets go of the models that `full_model` keeps."""
    _full_model.cache_clear()
