"""How fast a run was: seconds a stage, and what each rank computed in how much time and memory.

In: the stages as they run, the predict loop's hooks on every rank, and what a writer has counted. Out: `metrics.json`.

How: the process that leads the run times the stages; a callback on every rank leaves a small JSON file in the journal,
so that what spawned and remote ranks found out comes back the same way as what the first did.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from memvec.data.datamodule import plan_of
from memvec.fields import JsonObject
from memvec.model.engine import computing_module
from memvec.trainer.rank_files import RankFiles


def metrics_files(journal: Path) -> RankFiles:
    """Returns the metrics of the ranks in a journal's folder."""
    return RankFiles(journal, "metrics")


class Stopwatch:
    """Seconds spent in each stage, in the order in which they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def stage_table(seconds: dict[str, float]) -> str:
    """Returns the stages of a run as a table: seconds, and their share of all."""
    whole = sum(seconds.values()) or 1.0
    rows = [f"{name:<20}{spent:>10.2f} s {100 * spent / whole:>6.1f} %" for name, spent in seconds.items()]
    return "\n".join([*rows, f"{'all':<20}{whole:>10.2f} s"]) + "\n"


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory this process has held: on a GPU the device's, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


class RankMetrics(pl.Callback):
    """Leaves this rank's numbers of the predict loop in the journal's folder; those of a second loop are added.

    Args:
        journal: The journal's folder.
        counters: Returns further numbers of the loop that has just ended, by name.
    """

    def __init__(self, journal: Path, counters: Callable[[], dict[str, int]] = dict) -> None:
        self.journal = journal
        self.counters = counters
        self._start = 0.0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock, after loading and planning."""
        self._start = time.perf_counter()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock when the last vector is in the journal: this callback stands behind the writer."""
        seconds = time.perf_counter() - self._start
        plan, module = plan_of(trainer), computing_module(pl_module)
        counts = module.group.is_first_with_its_batches  # what a tensor-parallel group computes is counted once
        files = metrics_files(self.journal)
        numbers = {
            "seconds": seconds,
            "warm_up_seconds": plan.warm_up_seconds,
            "entries": plan.sampler.rows * counts,
            "tokens": plan.count_tokens() * counts,
            "computed_tokens": plan.sampler.total_tokens * counts,
            "padded_tokens": plan.sampler.padded_tokens * counts,
        }
        earlier = files.read(trainer.global_rank) or JsonObject(self.journal, {"counted": {}})
        loop = {
            "counted": _sum(self.counters(), earlier.within("counted")),
            "max_tokens": plan.sampler.max_tokens,
            "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
            "notes": module.notes(),
        }
        files.write(trainer.global_rank, {**_sum(numbers, earlier), **loop})


def _sum(numbers: dict[str, Any], earlier: JsonObject) -> dict[str, Any]:
    """Adds the numbers of an earlier loop of this run."""
    kinds = {name: float if isinstance(number, float) else int for name, number in numbers.items()}
    return {name: number + (earlier.take_or(name, kinds[name]) or 0) for name, number in numbers.items()}


def first_notes(journal: Path) -> dict[str, Any] | None:
    """Returns what the first rank's module found out while running, or None where nothing was left to run.

    Args:
        journal: The journal's folder.
    """
    first = metrics_files(journal).read(0)
    return None if first is None else first.within("notes").content


def combine_ranks(journal: Path) -> dict[str, Any]:
    """Returns the run's numbers from those of its ranks: the slowest rank's time, everybody's work.

    Args:
        journal: The journal's folder.
    """
    ranks = metrics_files(journal).read_all()

    def total(name: str) -> int:
        return sum(rank.take(name, int) for rank in ranks)

    seconds = max((rank.take("seconds", float) for rank in ranks), default=0.0)
    counted = {name: total(f"counted.{name}") for name in (ranks[0].within("counted").content if ranks else ())}
    return {
        "entries_per_second": total("entries") / seconds if seconds else 0.0,
        "tokens_per_second": total("tokens") / seconds if seconds else 0.0,
        "padding_share": 1 - total("computed_tokens") / total("padded_tokens") if total("padded_tokens") else 0.0,
        "computed_entries": total("entries"),
        "computed_tokens": total("computed_tokens"),
        "max_tokens": ranks[0].take_or("max_tokens", int) if ranks else None,
        "ranks": len(ranks),
        **counted,
        **{f"{name}_per_second": number / seconds if seconds else 0.0 for name, number in counted.items()},
        "predict_seconds": seconds,
        "warm_up_seconds": max((rank.take_or("warm_up_seconds", float) or 0.0 for rank in ranks), default=0.0),
        "peak_memory_bytes": max((rank.take("peak_memory_bytes", int) for rank in ranks), default=0),
    }
