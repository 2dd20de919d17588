"""The contestants: what people run instead of memvec, and memvec.

Each is a function of a `Task` that loads what it needs and returns a function of texts, which computes their vectors
once and says how long it took. The clock covers what a contestant does with prompts until the vectors are in host
memory; the reference and sentence-transformers take text, so tokenising is inside theirs (well below 1 % on a
processor). memvec's clock is its own: the predict stage, with its probe, its journal and its flushes to disk.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BatchEncoding, PreTrainedModel

from memvec.data.sampler import LengthGroupedBatchSampler
from memvec.metrics import peak_memory_bytes
from memvec.model.pooling import last_token
from tests.benchmarks.task import Task, evenly_spaced, quiet_libraries
from tests.benchmarks.worker import call_once
from tests.reference import reference_vectors

Result = TypeVar("Result")
Option = TypeVar("Option")


@dataclass(frozen=True)
class Turn:
    """What one computation of all texts came to.

    Args:
        vectors: `[N, D]` float32, in the order of the texts.
        seconds: How long it took.
        padding_share: The share of the computed tokens that was padding.
        details: What else is worth a line in the JSON.
        peak_memory_bytes: Of the contestant's process, loading included.
    """

    vectors: NDArray[np.float32]
    seconds: float
    padding_share: float
    details: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int = 0


Run = Callable[[Sequence[str]], Turn]


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


def compete(name: str, task: Task) -> Callable[[Sequence[int]], Turn]:
    """Builds a contestant, in its own process; returns the function that computes rows of the task's texts once.

    Of the vectors it returns those of the task's subset.
    """
    quiet_libraries()
    torch.set_num_threads(task.threads)
    run = CONTESTANTS[name].build(task)
    subset = set(task.subset)

    def turn(rows: Sequence[int]) -> Turn:
        result = run([task.texts[row] for row in rows])
        kept = [at for at, row in enumerate(rows) if row in subset]
        if task.device == "cuda":
            torch.cuda.empty_cache()  # the next contestant shares the device
        peak = peak_memory_bytes(torch.device(task.device))
        return Turn(result.vectors[kept], result.seconds, result.padding_share, result.details, peak)

    return turn


def truth(task: Task) -> Callable[[], NDArray[np.float32]]:
    """Builds the reference in float32, whatever the task's precision; returns what computes the subset's vectors."""
    quiet_libraries()
    torch.set_num_threads(task.threads)
    model = _full_model(task, torch.float32)
    texts = [task.texts[row] for row in task.subset]
    return lambda: reference_vectors(model, _on_device(task), texts, template=task.template).cpu().numpy()


def reference(task: Task) -> Run:
    """One entry at a time through the full model, all layers' states kept: tests/reference.py as it stands."""
    model, tokenizer = _full_model(task, task.dtype), _on_device(task)

    def run(texts: Sequence[str]) -> Turn:
        compute = partial(reference_vectors, model, tokenizer, texts, template=task.template)
        vectors, seconds = _timed(task, lambda: compute().cpu())
        return Turn(vectors.numpy(), seconds, padding_share=0.0)

    return run


def padded(task: Task, *, batch_size: int = 8) -> Run:
    """Batches of 8 in given order through the full model with its head; right padding and attention mask."""
    model, tokenizer = _full_model(task, task.dtype), task.tokenizer()

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
        vectors, seconds = _timed(task, lambda: compute(batches))
        return Turn(vectors.numpy(), seconds, _padding_share(batch["attention_mask"] for batch in batches))

    return run


def sentence_transformers(task: Task) -> Run:
    """The library's own way to embed with a causal model; sorts by length itself. The best of several batch sizes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    # Told nothing, the library puts every text into the chat template of a tokenizer that has one.
    plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    transformer = Transformer(
        task.model,
        model_kwargs={"dtype": task.dtype},
        modality_config=plain,
        module_output_name="token_embeddings",
    )
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling], device=task.device)
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    masks: list[torch.Tensor] = []
    transformer.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[0]["attention_mask"]))

    def encode(texts: Sequence[str], batch_size: int) -> Turn:
        masks.clear()
        options = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        vectors, seconds = _timed(task, lambda: model.encode(task.prompts(texts), **options).float().cpu())
        return Turn(vectors.numpy(), seconds, _padding_share(masks), {"batch_size": batch_size})

    sizes = (8, 16, 32, 64) if task.device == "cpu" else (8, 16, 32, 64, 128, 256)
    return partial(encode, batch_size=_fastest(task, sizes, encode))


def openvino(task: Task) -> Run:
    """OpenVINO on length-sorted padded batches, backbone only; the best of several token budgets.

    optimum-intel does not install beside the transformers that memvec needs, so the model is converted as it does it:
    by tracing, with a sequence length that is free. The last token is taken inside the graph.
    """
    from openvino import Core

    path = task.scratch / "openvino.xml"
    call_once("openvino's conversion", _convert_to_openvino, (task,), (str(path),))  # its memory is not counted
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if task.dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": task.threads,
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on all threads
    }
    compiled = Core().compile_model(path, "CPU", hints)
    tokenizer = task.tokenizer()

    def encode(texts: Sequence[str], max_tokens: int) -> Turn:
        ids = [np.asarray(row) for row in tokenizer(task.prompts(texts))["input_ids"]]
        lengths = np.asarray([len(row) for row in ids])
        groups = [(np.arange(len(ids)), lengths)]
        plan = LengthGroupedBatchSampler(groups, batch_size=len(ids), max_tokens=max_tokens)
        batches = []
        for rows in plan:
            mask = np.arange(lengths[rows].max()) < lengths[rows][:, None]  # [B, T]
            input_ids = np.zeros(mask.shape, dtype=np.int64)
            input_ids[mask] = np.concatenate([ids[row] for row in rows])
            batches.append((rows, input_ids, mask.astype(np.int64)))

        def compute() -> NDArray[np.float32]:
            vectors = np.concatenate([compiled((input_ids, mask))[0] for _, input_ids, mask in batches])
            in_order = np.empty_like(vectors)
            in_order[np.concatenate([rows for rows, _, _ in batches])] = vectors
            return in_order

        vectors, seconds = _timed(task, compute)
        return Turn(vectors, seconds, plan.padding_share, {"max_tokens": max_tokens})

    return partial(encode, max_tokens=_fastest(task, (512, 1024, 2048, 4096), encode))


def memvec(task: Task) -> Run:
    """`memvec.predict` as a user runs it; the seconds are those of its predict stage, from its own metrics.json."""
    from memvec import compose, predict
    from memvec.api import read_vectors

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # as conf/predict.yaml does for the command line
    folder, data = task.scratch / "memvec", task.scratch / "memvec.jsonl"
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
    overrides = [*(f"{name}={value}" for name, value in settings.items()), *task.overrides]

    def run(texts: Sequence[str]) -> Turn:
        with data.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        shutil.rmtree(folder, ignore_errors=True)
        metrics = predict(compose(overrides)).metrics
        vectors = read_vectors(folder).numpy()
        details = {"metrics": metrics, "overrides": list(task.overrides)}
        return Turn(vectors, metrics["predict_seconds"], metrics["padding_share"], details)

    return run


CONTESTANTS = {
    "reference": Contestant("one at a time, full model, all hidden states", reference, on_subset=True),
    "padded": Contestant("batches of 8 in given order, full model", padded),
    "sentence-transformers": Contestant(
        "sentence-transformers, last-token pooling", sentence_transformers, ("sentence_transformers",)
    ),
    "openvino": Contestant("OpenVINO, length-sorted batches, backbone", openvino, ("openvino",), devices=("cpu",)),
    "memvec": Contestant("memvec", memvec),
}


def _timed(task: Task, compute: Callable[[], Result]) -> tuple[Result, float]:
    _synchronise(task)
    start = time.perf_counter()
    result = compute()
    _synchronise(task)
    return result, time.perf_counter() - start


def _synchronise(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.synchronize()


def _fastest(task: Task, options: Sequence[Option], encode: Callable[[Sequence[str], Option], Turn]) -> Option:
    """Returns the option that takes the fewest seconds for a sample of the texts; each is tried twice."""
    sample = [task.texts[row] for row in evenly_spaced(len(task.texts), 64)]
    return min(options, key=lambda option: min(encode(sample, option).seconds for _ in range(2)))


def _padding_share(masks: Iterable[torch.Tensor]) -> float:
    counts = [(int(mask.sum()), mask.numel()) for mask in masks]
    return 1 - sum(real for real, _ in counts) / sum(computed for _, computed in counts)


def _full_model(task: Task, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype)
    return model.to(task.device).eval()


def _on_device(task: Task) -> Any:
    """Returns a tokenizer whose tensors are where the model is, for the reference, which moves nothing."""
    tokenizer = task.tokenizer()
    return lambda prompt, **options: tokenizer(prompt, **options).to(task.device)


class _LastState(nn.Module):
    """A backbone that returns the last real token's state, `[B, D]`, so that OpenVINO need not hand out all states."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return last_token(output.last_hidden_state, attention_mask.sum(1))


def _convert_to_openvino(task: Task) -> Callable[[str], None]:
    def convert(path: str) -> None:
        from openvino import PartialShape, Type, convert_model, save_model

        warnings.simplefilter("ignore")  # tracing warns of every branch; the vectors are compared all the same
        backbone = AutoModel.from_pretrained(task.model, dtype=torch.float32).eval()
        example = {name: torch.ones(2, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        inputs = [(name, PartialShape([-1, -1]), Type.i64) for name in example]
        save_model(convert_model(_LastState(backbone), example_input=example, input=inputs), path, False)

    quiet_libraries()
    return convert
