"""A contestant's turn: what it returns, its clock, and how it finds its best setting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.task import Task, evenly_spaced

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
        warm_up_seconds: What of `seconds` was measuring and proving, which a longer run does not pay again.
    """

    vectors: NDArray[np.float32]
    seconds: float
    padding_share: float
    details: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    warm_up_seconds: float = 0.0


Run = Callable[[Sequence[str]], Turn]


def timed(task: Task, compute: Callable[[], Result]) -> tuple[Result, float]:
    """Returns what `compute` returns, and the seconds until the device had finished it."""
    _synchronise(task)
    start = time.perf_counter()
    result = compute()
    _synchronise(task)
    return result, time.perf_counter() - start


def _synchronise(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.synchronize()


def fastest(
    task: Task, options: Sequence[Option], encode: Callable[[Sequence[str], Option], Turn], *, entries: int = 64
) -> Option:
    """Returns the option that takes the fewest seconds for a sample of the texts; each is tried twice."""
    sample = [task.texts[row] for row in evenly_spaced(len(task.texts), entries)]

    def seconds(option: Option) -> float:
        try:
            return min(encode(sample, option).seconds for _ in range(2))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return float("inf")

    return min(options, key=seconds)


def padding_share(masks: Iterable[torch.Tensor]) -> float:
    """Returns the share of padding in the batches whose attention masks these are, each `[B, T]`."""
    counts = [(int(mask.sum()), mask.numel()) for mask in masks]
    return 1 - sum(real for real, _ in counts) / sum(computed for _, computed in counts)
