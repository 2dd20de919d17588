"""One run from its parts to its finished folder, whatever is computed: vectors of texts, or texts of conversations.

In: a `Stage`. Out: the folder, complete, and its summary.

    claim the folder -> prepare the data -> reuse -> computation -> journal -> results in order -> manifest

The process that leads (rank 0) claims the folder and prepares the data before any other process is started, so that
what is wrong with the input, the model or the folder is said once. The rest runs on every rank, where it is Lightning
that computes (`memvec.run.computation`). A program may run one stage behind another (`memvec.extract`): then the ranks
stay for the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from omegaconf import DictConfig

from memvec.config.compose import to_container
from memvec.errors import InputError, ServerError
from memvec.files import atomic_file, make_folder, read_json
from memvec.run.computation import Computation, Rows
from memvec.run.folder import FORMAT, JOURNAL_FORMAT, RunFolder, RunState
from memvec.run.reuse import check_runs, find_runs, seed_journal
from memvec.run.summary import Summary, read_summary, write_summary
from memvec.trainer.history import history_files, write_history
from memvec.trainer.metrics import Stopwatch, combine_ranks, first_notes, metrics_files, stage_table
from memvec.trainer.ranks import process_rank, rank_errors
from memvec.urls import masked_config
from memvec.writer.frames import journal_files
from memvec.writer.prediction_writer import JournalCallback

log = logging.getLogger(__name__)


class Results(Protocol):
    """What turns a complete journal into the result."""

    @property
    def counts(self) -> Any:
        """What became of the rows, as a dataclass."""

    def write_results(self, *, rank: int, world_size: int) -> None:
        """Writes this rank's share of the result."""

    def notes(self) -> dict[str, Any]:
        """Returns where the results come from, for the manifest."""

    def write_rejected(self) -> None:
        """Writes which rows have no result; the first rank does."""


@dataclass
class Stage(Generic[Summary]):
    """The parts of a run.

    Args:
        cfg: The configuration they were built from.
        folder: The run's folder.
        rows: What there is to compute, and what is left of it.
        computation: Computes that, and puts it into the journal.
        writer: Says how.
        results: Makes what writes the results; called when every row is in the journal.
        summary: The class of the summary.
        stopwatch: Has timed the building of the parts.
        reuse: Names finished runs, whose vectors it takes.
        what: What is computed, in words.
        attempts: How often a row that failed is tried.
        keeps_history: Whether what the run was like over its course is kept, for its page.
        named: The folder that the user has named, where this stage's lies within it.
    """

    cfg: DictConfig
    folder: RunFolder
    rows: Rows
    computation: Computation
    writer: JournalCallback
    results: Callable[[], Results]
    summary: type[Summary]
    stopwatch: Stopwatch
    reuse: str | Sequence[str] | None = None
    what: str = "vectors"
    attempts: int = 1
    keeps_history: bool = True
    named: RunFolder | None = None


def run_stage(stage: Stage[Summary], *, is_last: bool = True) -> Summary:
    """Runs a stage, or resumes it where an earlier attempt stopped.

    Args:
        stage: Its parts.
        is_last: Whether the processes that were started end with it; if not, all of them return with its summary.

    Returns:
        The finished run's summary; on other ranks than the first an empty one, where it is the last stage.

    Raises:
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    folder, computation, stopwatch = stage.folder, stage.computation, stage.stopwatch
    named = stage.named or folder
    try:
        if computation.leads:
            if _claim(stage) is RunState.FINISHED:
                log.info("the run in %s is complete already; nothing to do", folder.root)
                folder.release(remove_journal=True)  # killed between the manifest and the end
                return read_summary(folder, stage.summary)
        elif folder.is_finished:
            return read_summary(folder, stage.summary)
        computation.barrier("the first rank has prepared the data")  # no matter before the ranks are started

        with stopwatch.stage("load and predict"), rank_errors(named):
            try:
                _compute(stage)
            except ServerError:
                if not journal_files(folder.journal):  # nothing was answered: the server put right may have the folder
                    folder.release(remove_journal=True)
                raise

        rank, world_size = process_rank()
        with stopwatch.stage("finalize"), rank_errors(named):
            results = stage.results()
            results.write_results(rank=rank, world_size=world_size)
            computation.barrier("every rank's share of the results is written")
        if rank == 0:
            if is_last:
                computation.wait_for_started()
            summary = _finish(stage, results)
        if is_last:
            return summary if rank == 0 else stage.summary(folder, {}, {})
        computation.barrier("the stage is complete")
        return read_summary(folder, stage.summary)
    finally:
        folder.release()


def _claim(stage: Stage[Any]) -> RunState:
    """Takes the folder for this run and prepares the data, unless the run is complete; says which it was."""
    folder, rows = stage.folder, stage.rows
    fingerprint = {
        FORMAT: JOURNAL_FORMAT,
        **rows.fingerprint(),
        **stage.computation.fingerprint(),
        **stage.writer.fingerprint(),
    }
    runs = [] if folder.is_finished else find_runs(stage.reuse, own=folder)
    check_runs(runs, fingerprint)
    state = folder.claim(fingerprint, resume=stage.cfg.resume)
    if state is not RunState.FINISHED:
        history_files(folder.journal).forget()
        metrics_files(folder.journal).forget()  # an attempt that was killed may have left its numbers
        with stage.stopwatch.stage("prepare"):
            try:
                rows.prepare_data()
            except InputError:
                if state is RunState.NEW:  # nothing was computed: the input put right may have the folder
                    folder.release(remove_journal=True)
                raise
        if runs:
            with stage.stopwatch.stage("reuse"):
                seed_journal(runs, folder)
                rows.find_remaining()
        if state is RunState.UNFINISHED:
            log.info("resuming %s: %d %s are left to compute", folder.root, rows.count_remaining(), stage.what)
    return state


def _compute(stage: Stage[Any]) -> None:
    """Computes what is left, and again what failed; every rank goes through every attempt."""
    computation, rows = stage.computation, stage.rows
    for attempt in range(stage.attempts):
        rows.attempt = attempt
        if attempt > 0:
            if computation.leads:
                rows.find_remaining()
            computation.barrier("what is to be tried again is known")
            if rows.count_remaining() == 0:
                return
            if computation.leads:
                log.info("trying again: %d %s", rows.count_remaining(), stage.what)
        computation.run()
        computation.barrier("every rank's journal is complete")


def _finish(stage: Stage[Summary], results: Results) -> Summary:
    """Writes what the first rank alone writes, and gives the folder back."""
    folder, seconds = stage.folder, stage.stopwatch.seconds
    results.write_rejected()
    if stage.keeps_history:
        write_history(folder.journal, folder.history)
    summary = write_summary(
        folder,
        stage.summary,
        counts=results.counts,
        config=masked_config(to_container(stage.cfg)),
        metrics={**combine_ranks(folder.journal), "seconds": seconds},
        notes={
            **(first_notes(folder.journal) or stage.computation.notes()),
            "ids": read_json(folder.input_summary).get("ids"),
            **results.notes(),
        },
    )
    if stage.cfg.profile:
        make_folder(folder.profile)  # there is none yet where no batch was left to compute
        with atomic_file(folder.profile / "stages.txt") as partial:
            partial.write_text(stage_table(seconds), encoding="utf-8")
        log.info("where the time went: %s", folder.profile)
    folder.release(remove_journal=True)
    return summary
