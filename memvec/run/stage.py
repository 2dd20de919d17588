"""One run from its parts to its finished folder, whatever is computed: vectors of texts, or texts of conversations.

In: a `Stage`. Out: the folder, complete, and its summary.

    claim the folder -> prepare the data -> trainer.predict -> journal -> results in order -> manifest

The process that leads (rank 0) claims the folder and prepares the data before any other process is started, so that
what is wrong with the input, the model or the folder is said once. Lightning's strategy then runs the rest on every
rank. A program may run one stage behind another (`memvec.extract`): then the ranks stay, and go on to the next.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from omegaconf import DictConfig

from memvec.config.compose import to_container
from memvec.data.datamodule import MemoryDataModule
from memvec.errors import InputError, WriterError, one_line
from memvec.files import read_json
from memvec.model.module import HiddenStateModule
from memvec.run.folder import RunFolder, RunState
from memvec.run.summary import RunSummary, read_summary, write_summary
from memvec.trainer.history import forget_histories, write_history
from memvec.trainer.interrupt import signals_to_spawned_ranks
from memvec.trainer.metrics import Stopwatch, combine_ranks, first_notes, forget_ranks, stage_table
from memvec.trainer.ranks import process_rank, rank_errors, wait_for_started_ranks

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


class Results(Protocol):
    """What turns a complete journal into the result."""

    @property
    def counts(self) -> Any:
        """What became of the rows, as a dataclass."""

    def write_results(self, *, rank: int, world_size: int) -> None:
        """Writes this rank's share of the result."""

    def write_rejected(self) -> None:
        """Writes which rows have no result; the first rank does."""


@dataclass
class Stage:
    """The parts of a run.

    Args:
        cfg: The configuration they were built from.
        folder: The run's folder.
        module: Computes.
        datamodule: Reads, and says what is left to compute.
        trainer: With the writer among its callbacks.
        results: Makes what writes the results; called when every row is in the journal.
        stopwatch: Has timed the building of the parts.
        what: What is computed, in words.
        attempts: How often a row that failed is tried.
        keeps_history: Whether what the run was like over its course is kept, for its page.
        summary: The class of the summary.
        named: The folder that the user has named, where this stage's lies within it.
    """

    cfg: DictConfig
    folder: RunFolder
    module: HiddenStateModule
    datamodule: MemoryDataModule
    trainer: pl.Trainer
    results: Callable[[], Results]
    stopwatch: Stopwatch
    what: str = "vectors"
    attempts: int = 1
    keeps_history: bool = True
    summary: type[RunSummary] = RunSummary
    named: RunFolder | None = None

    def follow(self, earlier: Stage) -> None:
        """Takes over the processes that an earlier stage of this program has started."""
        launcher, before = self.trainer.strategy.launcher, earlier.trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher) and isinstance(before, _SubprocessScriptLauncher):
            launcher.procs = before.procs


def run_stage(stage: Stage, *, is_last: bool = True) -> RunSummary:
    """Runs a stage, or goes on with it where an earlier attempt stopped.

    Args:
        stage: Its parts.
        is_last: Whether the processes that were started end with it; if not, all of them return with its summary.

    Returns:
        The finished run's summary; on other ranks than the first an empty one, where it is the last stage.

    Raises:
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    folder, trainer, stopwatch = stage.folder, stage.trainer, stage.stopwatch
    named = stage.named or folder
    try:
        if trainer.is_global_zero:
            if _claim(stage) is RunState.FINISHED:
                log.info("the run in %s is complete already; nothing to do", folder.root)
                folder.release(remove_journal=True)  # killed between the manifest and the end
                return read_summary(folder, stage.summary)
        elif folder.is_finished:
            return read_summary(folder, stage.summary)
        trainer.strategy.barrier("the first rank has prepared the data")  # no matter before the ranks are started

        with stopwatch.stage("load and predict"), rank_errors(named), signals_to_spawned_ranks(trainer):
            _compute(stage)

        rank, world_size = process_rank()
        with stopwatch.stage("finalize"), rank_errors(named):
            results = stage.results()
            results.write_results(rank=rank, world_size=world_size)
            trainer.strategy.barrier("every rank's share of the results is written")
        if rank == 0:
            if is_last:
                wait_for_started_ranks(trainer)
            summary = _finish(stage, results)
        if is_last:
            return summary if rank == 0 else stage.summary(folder, {}, {})
        trainer.strategy.barrier("the stage is complete")
        return read_summary(folder, stage.summary)
    finally:
        folder.release()


def _claim(stage: Stage) -> RunState:
    """Takes the folder for this run and prepares the data, unless the run is complete; says which it was."""
    folder, datamodule, precision = stage.folder, stage.datamodule, str(stage.trainer.precision)
    fingerprint = {**datamodule.fingerprint(), **stage.module.fingerprint(precision=precision)}
    state = folder.claim(fingerprint, resume=stage.cfg.resume)
    if state is not RunState.FINISHED:
        forget_histories(folder.journal)
        forget_ranks(folder.journal)  # an attempt that was killed may have left its numbers
        with stage.stopwatch.stage("prepare"):
            try:
                datamodule.prepare_data()
            except InputError:
                if state is RunState.NEW:  # nothing was computed: the input put right may have the folder
                    folder.release(remove_journal=True)
                raise
            except OSError as error:
                if error.errno not in DISK_IS_FULL:
                    raise
                raise WriterError(f"{folder.root}: cannot be written: {one_line(error)}") from error
        if state is RunState.UNFINISHED:
            log.info("going on in %s: %d %s are left to compute", folder.root, datamodule.count_remaining(), stage.what)
    return state


def _compute(stage: Stage) -> None:
    """Computes what is left, and again what failed; every rank goes through every attempt."""
    trainer, datamodule = stage.trainer, stage.datamodule
    for attempt in range(stage.attempts):
        datamodule.attempt = attempt
        if attempt > 0:
            if trainer.is_global_zero:
                datamodule.find_remaining()
            trainer.strategy.barrier("what is to be tried again is known")
            if datamodule.count_remaining() == 0:
                return
            if trainer.is_global_zero:
                log.info("trying again: %d %s", datamodule.count_remaining(), stage.what)
        trainer.predict(stage.module, datamodule=datamodule, return_predictions=False)
        trainer.strategy.barrier("every rank's journal is complete")


def _finish(stage: Stage, results: Results) -> RunSummary:
    """Writes what the first rank alone writes, and gives the folder back."""
    folder, seconds = stage.folder, stage.stopwatch.seconds
    results.write_rejected()
    if stage.keeps_history:
        write_history(folder.journal, folder.history)
    summary = write_summary(
        folder,
        counts=results.counts,
        config=to_container(stage.cfg),
        metrics={**combine_ranks(folder.journal), "seconds": seconds},
        notes={**(first_notes(folder.journal) or stage.module.notes()), "ids": read_json(folder.input_summary)["ids"]},
        summary=stage.summary,
    )
    if stage.cfg.profile:
        folder.profile.mkdir(exist_ok=True)  # there is none yet where no batch was left to compute
        (folder.profile / "stages.txt").write_text(stage_table(seconds), encoding="utf-8")
        log.info("where the time went: %s", folder.profile)
    folder.release(remove_journal=True)
    return summary
