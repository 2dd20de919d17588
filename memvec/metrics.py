"""How fast a run was: seconds a stage, and what each rank computed in how much time and memory.

In: the stages as they run, the predict loop's hooks on every rank, and what a writer has counted. Out: `metrics.json`.

How: the process that leads the run times the stages; a callback on every rank leaves a small JSON file in the journal,
so that the numbers of spawned and remote ranks come back the same way as those of the first.
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

from memvec.files import read_json, write_json

RANK_FILES = "metrics-rank-*.json"


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
        sampler = trainer.datamodule.sampler  # type: ignore[attr-defined]
        path = self.journal / f"metrics-rank-{trainer.global_rank:05d}.json"
        numbers = {
            "seconds": seconds,
            "entries": sampler.rows,
            "tokens": trainer.datamodule.count_tokens(sampler),  # type: ignore[attr-defined]
            "computed_tokens": sampler.total_tokens,
            "padded_tokens": sampler.padded_tokens,
        }
        earlier = read_json(path) if path.exists() else {}
        counted = _sum(self.counters(), earlier.get("counted", {}))
        peak = peak_memory_bytes(trainer.strategy.root_device)
        write_json(path, {**_sum(numbers, earlier), "counted": counted, "peak_memory_bytes": peak})


def _sum(numbers: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Adds the numbers of an earlier loop of this run."""
    return {name: number + earlier.get(name, 0) for name, number in numbers.items()}


def forget_ranks(journal: Path) -> None:
    """Removes the numbers of an earlier attempt, so that a run's are those of the attempt that finished it.

    Args:
        journal: The journal's folder.
    """
    for path in journal.glob(RANK_FILES):
        path.unlink()


def combine_ranks(journal: Path) -> dict[str, Any]:
    """Returns the run's numbers from those of its ranks: the slowest rank's time, everybody's work.

    Args:
        journal: The journal's folder.
    """
    ranks = [read_json(path) for path in sorted(journal.glob(RANK_FILES))]

    def total(name: str) -> int:
        return sum(rank[name] for rank in ranks)

    seconds = max((rank["seconds"] for rank in ranks), default=0.0)
    counted = {name: sum(rank["counted"][name] for rank in ranks) for name in (ranks[0]["counted"] if ranks else ())}
    return {
        "entries_per_second": total("entries") / seconds if seconds else 0.0,
        "tokens_per_second": total("tokens") / seconds if seconds else 0.0,
        "padding_share": 1 - total("computed_tokens") / total("padded_tokens") if total("padded_tokens") else 0.0,
        "computed_entries": total("entries"),
        "computed_tokens": total("computed_tokens"),
        "ranks": len(ranks),
        **counted,
        **{f"{name}_per_second": number / seconds if seconds else 0.0 for name, number in counted.items()},
        "predict_seconds": seconds,
        "peak_memory_bytes": max((rank["peak_memory_bytes"] for rank in ranks), default=0),
    }
