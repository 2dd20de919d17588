"""What a run was like over its course: throughput by time, and padding by length.

In: the batches of every rank, as they are done. Out: two small tables in `history.json` that `memvec.report` draws:

    timeline   {"seconds", "entries", "tokens", "padding"}, each of 60 equal slices of the predict stage
    lengths    {"tokens_per_bin", "entries", "padding"}, each of about 40 bins of prompt length

How: a callback on every rank leaves its numbers in the journal, as `memvec.trainer.metrics` does. A rank keeps its
running totals at no more than 256 moments, dropping every other one when there are more, and the ranks' totals are
added by interpolation: neither grows with the run, or with the number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memvec.data.collator import Batch
from memvec.data.datamodule import plan_of
from memvec.fields import JsonObject
from memvec.files import write_json
from memvec.model.engine import computing_module
from memvec.trainer.rank_files import RankFiles

MOMENTS = 256
SLICES = 60
BINS = 40
COUNTED = ("entries", "tokens", "padding")


class RankHistory(pl.Callback):
    """Leaves this rank's history of the predict loop in the journal's folder.

    Args:
        journal: The journal's folder.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._start = 0.0
        self._timeline = Timeline(0.0)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock; matmuls are chosen and paths are probed before the first batch."""
        self._start = time.perf_counter()

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Notes when the first batch begins."""
        if batch_idx == 0:
            self._timeline = Timeline(time.perf_counter() - self._start)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes when a batch was done; the plan tells how much it was, so no device is waited for."""
        plan = plan_of(trainer)
        if not plan.sampler.is_dummy(batch_idx):
            lengths = plan.lengths[plan.sampler.batches[batch_idx]]
            self._timeline.add(time.perf_counter() - self._start, lengths, is_padded=plan.is_padded)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes this rank's file; what a tensor-parallel group computes together is counted once."""
        if not computing_module(pl_module).group.is_first_with_its_batches:
            return
        plan = plan_of(trainer)
        history = {
            "timeline": dict(zip(("seconds", *COUNTED), self._timeline.to_json(), strict=True)),
            "lengths": padding_by_length(plan.lengths, plan.sampler.batches, is_padded=plan.is_padded),
        }
        history_files(self.journal).write(trainer.global_rank, history)


def history_files(journal: Path) -> RankFiles:
    """Returns the histories of the ranks in a journal's folder."""
    return RankFiles(journal, "history")


def write_history(journal: Path, path: Path) -> None:
    """Writes the run's history from those of its ranks.

    Args:
        journal: The journal's folder.
        path: `history.json`.
    """
    ranks = history_files(journal).read_all()
    timeline = combine_timelines([_timeline(rank) for rank in ranks])
    write_json(path, {"timeline": timeline, "lengths": combine_lengths([_lengths(rank) for rank in ranks])})


def _timeline(rank: JsonObject) -> list[list[float]]:
    return list(rank.within("timeline").take_columns(("seconds", *COUNTED), float).values())


def _lengths(rank: JsonObject) -> dict[str, Any]:
    columns = rank.within("lengths").take_columns(("entries", "padding"), int)
    return {"tokens_per_bin": rank.take("lengths.tokens_per_bin", int), **columns}


class Timeline:
    """Running totals of one rank at a bounded number of moments.

    Args:
        start: When the first batch began, in seconds since predicting did.
    """

    def __init__(self, start: float) -> None:
        self._total = (start, 0, 0, 0)
        self.moments: list[tuple[float, int, int, int]] = [self._total]
        self._every = 1
        self._batches = 0

    def add(self, seconds: float, lengths: NDArray[np.integer], *, is_padded: bool) -> None:
        """Counts a batch.

        Args:
            seconds: When it was done, since predicting began.
            lengths: Tokens of its rows' prompts, `[B]`.
            is_padded: Whether they were padded to the longest of them.
        """
        _, entries, tokens, padding = self._total
        own = int(lengths.sum())
        padded = len(lengths) * int(lengths.max()) if is_padded else own
        self._total = (seconds, entries + len(lengths), tokens + own, padding + padded - own)
        self._batches += 1
        if self._batches % self._every == 0:
            self.moments.append(self._total)
        if len(self.moments) > MOMENTS:
            self.moments = self.moments[::2]
            self._every *= 2

    def to_json(self) -> list[list[float]]:
        """Returns the moments, the last one being the end, as columns: seconds, entries, tokens, padding."""
        moments = self.moments if self.moments[-1] == self._total else [*self.moments, self._total]
        return [list(column) for column in zip(*moments, strict=True)]


def combine_timelines(timelines: Sequence[Sequence[Sequence[float]]]) -> dict[str, list[float]]:
    """Returns what all ranks did in equal slices of time.

    Args:
        timelines: What `Timeline.to_json` returned on each rank.
    """
    end = max((timeline[0][-1] for timeline in timelines), default=0.0)
    grid = np.linspace(0, end, SLICES + 1)
    totals = np.zeros((len(COUNTED), SLICES + 1))
    for seconds, *counted in timelines:
        totals += [np.interp(grid, seconds, column) for column in counted]
    slices = np.diff(totals, axis=1)
    return {
        "seconds": grid[1:].round(3).tolist(),
        **{name: values.round(1).tolist() for name, values in zip(COUNTED, slices, strict=True)},
    }


def padding_by_length(
    lengths: NDArray[np.integer], batches: Iterable[NDArray[np.int64]], *, is_padded: bool
) -> dict[str, Any]:
    """Returns how many rows of each length were computed, and how much padding they took.

    Args:
        lengths: Tokens of every row's prompt, `[N]`, the same on every rank.
        batches: This rank's batches, row numbers.
        is_padded: Whether rows are padded to the longest of their batch.
    """
    step = max(1, -(-(int(lengths.max(initial=0)) + 1) // BINS))
    bins = int(lengths.max(initial=0)) // step + 1
    entries, padding = np.zeros(bins, dtype=np.int64), np.zeros(bins, dtype=np.int64)
    for rows in batches:
        batch = lengths[rows]
        entries += np.bincount(batch // step, minlength=bins)
        if is_padded:
            padding += np.bincount(batch // step, weights=batch.max() - batch, minlength=bins).astype(np.int64)
    return {"tokens_per_bin": step, "entries": entries.tolist(), "padding": padding.tolist()}


def combine_lengths(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sum of what `padding_by_length` returned on each rank."""
    if not ranks:
        return {"tokens_per_bin": 1, "entries": [], "padding": []}
    sums = {name: np.sum([rank[name] for rank in ranks], axis=0).tolist() for name in ("entries", "padding")}
    return {"tokens_per_bin": ranks[0]["tokens_per_bin"], **sums}
