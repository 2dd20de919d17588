"""The contestants on a GPU: all in one process, so that they share one copy of the weights where they can.

memvec is `Encoder` around the full model that the others hold too, since on a GPU it takes the same kernels as with a
model of its own. Its choices are switched off one by one. `memvec.predict` loads a model of its own, and its clock
includes the journal and its flushes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import memvec.data.plan
import memvec.model.extractor
import memvec.model.held
from memvec import Encoder
from tests.benchmarks.ablation import GivenOrder
from tests.benchmarks.contestants import CONTESTANTS, Contestant, full_model, sentence_transformers
from tests.benchmarks.contestants import memvec as predict
from tests.benchmarks.task import Task
from tests.benchmarks.turn import Run, Turn, padding_share, timed

FLASH = "flash_attention_2"


def encoder(
    task: Task,
    *,
    attention: str | None = None,
    is_lent: bool = True,
    instead: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **options: Any,
) -> Run:
    """`memvec.Encoder` around the full model; the seconds are from texts to vectors in host memory.

    Args:
        task: What to run.
        attention: transformers' name of the attention implementation; None is the model's default.
        is_lent: Whether the model is the one that the other contestants hold too.
        instead: Puts something in the place of one of memvec's choices.
        options: Of the encoder.
    """
    if is_lent:
        model = full_model(task, task.dtype)
        held = Encoder(model, tokenizer=task.tokenizer(), **options)
        decoder = model.get_decoder()
    else:
        held = Encoder(task.model, dtype=task.dtype, device=task.device, **options)
        decoder = held._loaded().extractor.decoder
    with instead():
        held.encode(task.texts)  # which measures, once, what only many texts are worth
    passes: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        passes.append(kwargs["input_ids"])

    def run(texts: Sequence[str]) -> Turn:
        passes.clear()
        before = decoder.config._attn_implementation
        decoder.set_attn_implementation(attention or before)
        handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with instead():
                vectors, seconds = timed(task, lambda: held.encode(texts))
        finally:
            handle.remove()
            decoder.set_attn_implementation(before)
        compile_seconds = held._loaded().extractor.compile_seconds
        details = {
            "compile_seconds": compile_seconds,
            "passes": len(passes),
            "computed_tokens": sum(ids.numel() for ids in passes),
        }
        return Turn(vectors.numpy(), seconds, padding_share((ids != 0).cpu() for ids in passes), details)

    return run


@contextmanager
def given_order() -> Iterator[None]:
    """Batches of rows in the order of the input."""
    with patch.object(memvec.data.plan, "LengthGroupedBatchSampler", GivenOrder):
        yield


@contextmanager
def with_padding() -> Iterator[None]:
    """Batches are padded, and their shared prefix computed once for all of them."""
    with patch.object(memvec.model.extractor, "can_leave_padding_out", lambda *args, **options: False):
        yield


@contextmanager
def every_row() -> Iterator[None]:
    """Equal prompts are computed each."""
    with patch.object(memvec.model.held, "first_occurrence", lambda pairs: np.arange(len(pairs))):
        yield


def vllm(task: Task) -> Run:
    """vLLM as a pooling model, last token, in a process of its own that it starts; its vectors have length 1."""
    from vllm import LLM

    free, total = torch.cuda.mem_get_info()
    engine = LLM(
        task.model, runner="pooling", convert="embed", dtype="bfloat16", gpu_memory_utilization=0.8 * free / total
    )

    def run(texts: Sequence[str]) -> Turn:
        outputs, seconds = timed(task, lambda: engine.embed(task.prompts(texts), use_tqdm=False))
        vectors = np.asarray([output.outputs.embedding for output in outputs], dtype=np.float32)
        return Turn(vectors, seconds, padding_share=0.0)

    return run


def _choice(title: str, *packages: str, **options: Any) -> Contestant:
    return Contestant(f"memvec, {title}", partial(encoder, **options), packages)


# What matters most comes first: when the time is up, the last are left out.
GPU_CONTESTANTS = {
    "memvec": Contestant("memvec", encoder),
    "reference": CONTESTANTS["reference"],
    "padded": CONTESTANTS["padded"],
    "sentence-transformers": CONTESTANTS["sentence-transformers"],
    "sentence-transformers-flash": Contestant(
        "sentence-transformers, the same with FlashAttention",
        partial(sentence_transformers, chat_template=False, attention=FLASH),
        ("sentence_transformers", "flash_attn"),
        devices=("cuda",),
    ),
    "memvec-compiled": Contestant("memvec, its layers compiled", partial(encoder, is_lent=False, compile=True)),
    "padded-rows": _choice("rows padded", instead=with_padding),
    "without-prefix": _choice("every token computed", prefix_cache="off"),
    "given-order": _choice("batches in given order", instead=given_order),
    "max-tokens-auto": _choice("max_tokens=auto", max_tokens="auto"),
    "memvec-flash": _choice("FlashAttention", "flash_attn", attention=FLASH),
    "memvec-eager": _choice("eager attention", attention="eager"),
    "every-row": _choice("equal prompts computed each", instead=every_row),
    "predict": Contestant("memvec.predict, with its journal", partial(predict, name="predict")),
    "compiled": Contestant(
        "memvec.predict, model.compile=true", partial(predict, name="compiled", overrides=["model.compile=true"])
    ),
    "vllm": Contestant("vLLM, pooling the last token", vllm, ("vllm",), devices=("cuda",)),
}
