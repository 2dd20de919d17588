"""What computes what is left of a run: Lightning's Trainer here, or whatever else has these few methods.

In: prepared rows. Out: every row of them in the journal, of this process's and of all others'.

Why: a run claims its folder, prepares its data and makes its results alike, whether a model on these devices computes
or a server is asked (`memvec.generation.asking`), which has neither weights nor ranks.
"""

from __future__ import annotations

from typing import Any, Protocol

import lightning.pytorch as pl

from memvec.trainer.interrupt import signals_to_spawned_ranks
from memvec.trainer.lightning_internals import adopt_processes
from memvec.trainer.ranks import wait_for_started_ranks


class Rows(Protocol):
    """The rows of a run, prepared on disk."""

    attempt: int

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides them."""

    def prepare_data(self) -> None:
        """Makes the prepared files, and finds what is left."""

    def find_remaining(self) -> None:
        """Finds the rows that are left to compute."""

    def count_remaining(self) -> int:
        """Returns how many these are."""


class Computation(Protocol):
    """Computes what is left."""

    @property
    def leads(self) -> bool:
        """Whether this process claims the folder and prepares the data."""

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the results of given rows."""

    def barrier(self, name: str) -> None:
        """Waits for all processes that compute."""

    def run(self) -> None:
        """Computes the rows that are left; when it returns, this process's are in the journal."""

    def notes(self) -> dict[str, Any]:
        """Returns what was found out while computing, for the manifest."""

    def wait_for_started(self) -> None:
        """Waits for the processes that this one has started to end."""


class TrainerComputation:
    """Computes with Lightning's Trainer.

    Args:
        trainer: With the writer among its callbacks.
        module: Computes a batch.
        datamodule: Makes the batches.
    """

    def __init__(self, trainer: pl.Trainer, module: Any, datamodule: pl.LightningDataModule) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule

    @property
    def leads(self) -> bool:
        """Whether this is the first rank."""
        return bool(self.trainer.is_global_zero)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the results of given rows."""
        fingerprint: dict[str, Any] = self.module.fingerprint(precision=str(self.trainer.precision))
        return fingerprint

    def barrier(self, name: str) -> None:
        """Waits for all ranks."""
        self.trainer.strategy.barrier(name)

    def run(self) -> None:
        """Runs the predict loop on every rank."""
        with signals_to_spawned_ranks(self.trainer):
            self.trainer.predict(self.module, datamodule=self.datamodule, return_predictions=False)

    def notes(self) -> dict[str, Any]:
        """Returns what the module has found out."""
        notes: dict[str, Any] = self.module.notes()
        return notes

    def wait_for_started(self) -> None:
        """Waits for the ranks that Lightning's launcher started by a command."""
        wait_for_started_ranks(self.trainer)

    def follow(self, earlier: TrainerComputation) -> None:
        """Takes over the processes that the computation of an earlier stage of this program has started."""
        adopt_processes(self.trainer, earlier.trainer)
