"""Stops a run on SIGTERM or Ctrl-C after the batch in hand, with everything computed kept.

In: a signal. Out: `Interrupted`, raised between two batches on every rank; the writer flushes, the exit code is 128 +
the signal's number (143, 130).

How: Lightning looks at SIGTERM in its training loops only: predicting would run to its end and exit with 0. So this
callback puts handlers of its own in place when predicting starts, after Lightning has put its own. A handler only
remembers the signal and passes it on to the processes that Lightning's launcher started. With `ddp_spawn` the first
process computes nothing itself, and `signals_to_spawned_ranks` does the same there. A process whose parent dies gets
SIGTERM from the kernel, so that no rank outlives its run.

Who is impatient may send a second signal, which ends everything at once. It means that only to the process the user
talks to: the one that was started as a command, and started the others. Every other process may get each signal twice,
from the terminal or the scheduler and from what started it (Lightning's launcher, torchrun, SLURM), and would lose what
it has not flushed; it heeds the first one and no other, and what started it kills it where it does not end in time.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from memvec.errors import Interrupted
from memvec.model.engine import computing_module
from memvec.process import HOW_TO_STOP, SIGNALS, is_main_thread, restore, say, stop_on_signal
from memvec.trainer.lightning_internals import (
    is_started_by_command,
    keep_handler,
    signal_spawned_ranks,
    spawns_ranks,
    started_processes,
)

SECONDS_TO_FLUSH = 25

log = logging.getLogger(__name__)


@contextmanager
def signals_to_spawned_ranks(trainer: pl.Trainer) -> Iterator[None]:
    """Passes a signal on to the ranks that Lightning spawned, and waits for them; with other launchers does nothing.

    Raises:
        Interrupted: There was a signal.
    """
    if not spawns_ranks(trainer):
        yield
        return
    with stop_on_signal(
        lambda number: signal_spawned_ranks(trainer, signal.SIGTERM),
        kill=lambda: signal_spawned_ranks(trainer, signal.SIGKILL),
    ):
        yield


class StopOnSignal(pl.Callback):
    """Remembers a signal and ends the run after the batch in hand."""

    def __init__(self) -> None:
        self._received: int | None = None  # by this process
        self._agreed: int | None = None  # by this process or one it shares the weights with
        self._before: dict[int, Any] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leads = True
        self._must_end_with_0 = False

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the handlers in place; stops at once where Lightning has swallowed a signal meanwhile."""
        if not is_main_thread():
            return
        self._processes = started_processes(trainer)
        is_by_command = is_started_by_command(trainer)
        self._leads = is_by_command and trainer.local_rank == 0
        # Lightning watches the ranks it started by a command, and kills this process when one does not end with 0.
        self._must_end_with_0 = is_by_command and trainer.local_rank > 0
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        if trainer.received_sigterm:
            self._received = signal.SIGTERM
            self._pass_on(signal.SIGTERM)
        self._stop_if_received(pl_module, batches=0)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ends the run where a signal came during the batch."""
        self._stop_if_received(pl_module, batches=batch_idx + 1)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the handlers back that were there before; ends the run where a signal came behind the last batch.

        Else this rank would wait for others that have ended, or a run that was told to stop would go on.
        """
        self._stop_if_received(pl_module, batches=int(sum(trainer.num_predict_batches)))
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Waits for the ranks this process started, which flush too; those that do not end are killed."""
        if self._agreed is None:
            self._restore()
            return
        for process in self._processes:
            try:
                process.wait(timeout=SECONDS_TO_FLUSH)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._leads:
            self._restore()
            return
        # The signal may come again until this process has ended, so it is ignored from here on, even while Python shuts
        # down; and Lightning, which puts back the handlers that it has found, must not find any to put back.
        for number in self._before:
            keep_handler(trainer, number)
            signal.signal(number, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._leads:
            if self._received is not None:
                for process in self._processes:
                    process.kill()
                os._exit(128 + number)
            say(HOW_TO_STOP)
        self._received = self._received or number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _stop_if_received(self, module: pl.LightningModule, *, batches: int) -> None:
        # Where weights are sharded, a process that stopped alone would leave the others waiting for it.
        received = int(computing_module(module).group.maximum(self._received or 0))
        if not received:
            return
        self._agreed = received
        log.info("stopping after %d %s", batches, "batch" if batches == 1 else "batches")
        if self._must_end_with_0:
            raise SystemExit(0)
        raise Interrupted(received)

    def _restore(self) -> None:
        restore(self._before)
        self._before = {}
