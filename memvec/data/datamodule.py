"""The LightningDataModule: from an input to the padded batches of this rank, whatever a row of it is.

In: an input (`memvec.data.memories` for texts, `memvec.generation.conversations` for windows of conversations). Out:
`prepare_data` leaves prepared files in the run's journal folder (`memvec.data.prepared`), `predict_dataloader` serves
this rank's batches of them.

How: one process prepares (rank 0), every process maps the same files (`setup`), and each plans its own batches from the
same lengths, within the warm-up of the module that computes them, since what a row costs depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from memvec.data.batches import PromptTable
from memvec.data.collator import Batch, PromptRows
from memvec.data.dataset import EntriesSummary
from memvec.data.plan import BatchPlan, Ranks, plan_nothing
from memvec.data.prepared import PreparedRows
from memvec.data.rules import BatchRules
from memvec.layout import RunLayout
from memvec.prompt.encoder import PromptEncoder
from memvec.schema import LENGTH, SHARED


class PromptInput(Protocol):
    """Rows that become prompts, and how these become batches."""

    encoder: PromptEncoder
    rules: BatchRules
    num_workers: int

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run."""

    def write_entries(self, folder: RunLayout) -> EntriesSummary:
        """Reads the input and writes the usable rows, and the rejected ones."""


class PlanningModule(Protocol):
    """A LightningModule that is warmed up on the rows it will compute."""

    def warm_up(self, table: PromptTable, rules: BatchRules, ranks: Ranks) -> BatchPlan:
        """Makes itself ready for the rows of a table, and plans this rank's batches."""

    def has_own_batches_in_step(self) -> bool:
        """Whether processes with batches of their own must run equally many of them."""


class PromptDataModule(pl.LightningDataModule):
    """Serves the prompts of an input that are left to compute.

    Args:
        rows: The input.
        folder: The run's folder.
        is_done: Returns for `(rows, attempt)`, `[N]` bool, whether the journal has all there will be of a row.
    """

    def __init__(
        self, rows: PromptInput, *, folder: RunLayout, is_done: Callable[[int, int], NDArray[np.bool_]]
    ) -> None:
        super().__init__()
        self.input = rows
        self.is_done = is_done
        self.prepared = PreparedRows(folder, encoder=rows.encoder, write_entries=partial(rows.write_entries, folder))
        # A rank may have no row at all where there are more ranks than rows.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.attempt = 0  # where rows that failed are tried again, which time it is
        self.plan: BatchPlan | None = None
        self._is_prepared = False

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run."""
        return self.input.fingerprint()

    def prepare_data(self) -> None:
        """Reads, validates and tokenises the input, as far as an earlier attempt has not; finds what is left to do."""
        if self._is_prepared:
            return
        self.prepared.prepare()
        self.find_remaining()
        self._is_prepared = True

    def find_remaining(self) -> None:
        """Finds the rows that are left to compute: the first of equal prompts, less what the journal holds."""
        self.prepared.find_remaining(lambda rows: self.is_done(rows, self.attempt))

    def count_remaining(self) -> int:
        """Returns how many rows are left to compute; `prepare_data` has run."""
        return self.prepared.count_remaining()

    def table(self) -> PromptTable:
        """Returns the prompts that are left, memory-mapped; `prepare_data` has run."""
        prompts = Dataset.from_file(str(self.prepared.folder.prompts))
        return PromptTable(
            PromptRows(prompts),
            lengths=prompts.data.column(LENGTH).to_numpy(),
            shared=prompts.data.column(SHARED).to_numpy(),
            rows=np.load(self.prepared.folder.remaining_rows),
        )

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Warms the module up, where rows are left, and returns the loader of this rank's batches."""
        if self.trainer is None:
            raise RuntimeError("this data module serves batches within a Lightning Trainer only")
        module = cast(PlanningModule, self.trainer.lightning_module)
        # Not the global rank: the ranks of one tensor-parallel group must see the same batches.
        shares = self.trainer.distributed_sampler_kwargs or {}
        ranks = Ranks(
            rank=shares.get("rank", 0),
            world_size=shares.get("num_replicas", 1),
            in_step=module.has_own_batches_in_step(),
            broadcast=self.trainer.strategy.broadcast,
        )
        table, rules = self.table(), self.input.rules
        self.plan = plan = (module.warm_up if len(table.rows) else plan_nothing)(table, rules, ranks)
        # torch types these for single rows and lists; it takes `__getitems__` and any iterable of batches all the same.
        tokens, sampler, collate = cast(tuple[Any, Any, Any], (plan.batches.tokens, plan.sampler, plan.batches.collate))
        return DataLoader(
            tokens,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.input.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )


def datamodule_of(trainer: pl.Trainer) -> PromptDataModule:
    """Returns the data module that a Trainer runs with: Lightning sets it, but does not declare it."""
    return cast(PromptDataModule, cast(Any, trainer).datamodule)


def is_anything_left(trainer: pl.Trainer) -> bool:
    """Whether rows are left to compute, on whichever rank; the data are prepared."""
    return datamodule_of(trainer).count_remaining() > 0


def plan_of(trainer: pl.Trainer) -> BatchPlan:
    """Returns the plan of this rank's batches; predicting has started."""
    plan = datamodule_of(trainer).plan
    if plan is None:
        raise RuntimeError("predicting has not started: there is no plan of batches yet")
    return plan
