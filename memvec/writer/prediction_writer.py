"""The prediction writer: takes vectors off the device and into the journal, beside the computation.

In: after each batch, its vectors on the device and its row numbers. Out: a journal frame every `flush_every` entries.

How: the vectors are copied to the host without waiting, and a bounded queue hands them to a thread that waits for the
copy, checks them, gathers `flush_every` of them and appends the frame. A full queue holds the computation up, so
nothing grows; an error in the thread is raised in the predicting thread at the next batch, so it is never silent. The
rows come from the batch itself: Lightning's own batch indices are not relied upon.

A vector that holds NaN or infinity never reaches the journal: its row waits until all batches are done.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from memvec import lockstep
from memvec.config import at_least, one_of
from memvec.data.collator import Batch
from memvec.data.reader import one_line
from memvec.errors import WriterError
from memvec.model.module import HiddenStateModule
from memvec.writer.journal import JournalWriter

QUEUED_BATCHES = 8
# A run whose first vectors are all bad has a broken model, not bad rows.
BAD_ROWS_TO_STOP = 100

log = logging.getLogger(__name__)


class _Copied(NamedTuple):
    """Row numbers and vectors on their way from the device: there once `done`, where there is one, has happened."""

    rows: torch.Tensor
    vectors: torch.Tensor
    done: torch.cuda.Event | None


class VectorWriter(BasePredictionWriter):
    """Appends predicted vectors to this process's journal file.

    Args:
        journal: The journal's folder; it exists when predicting starts.
        flush_every: Entries in a frame: at most so many, plus what was in flight, are lost when the process dies.
        keep_text: Whether the finished result has a `text` column; `memvec.writer.finalize` asks.
        fsync: When frames reach the disk itself; see `memvec.writer.journal.JournalWriter`.
    """

    def __init__(
        self,
        journal: Path,
        *,
        flush_every: int = 50,
        keep_text: bool = True,
        fsync: Literal["flush", "close"] = "close",
    ) -> None:
        super().__init__(write_interval="batch")
        self.journal = journal
        self.flush_every = at_least("writer.flush_every", flush_every, 1)
        self.keep_text: bool = one_of("writer.keep_text", keep_text, (True, False))
        self.fsync: Literal["flush", "close"] = one_of("writer.fsync", fsync, ("flush", "close"))
        self._thread: _FlushThread | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens this process's journal file."""
        self._thread = _FlushThread(self._open_journal(trainer.global_rank), flush_every=self.flush_every)
        if multiprocessing.parent_process() is not None:
            # In a process that it spawned, Lightning calls no `on_exception`; this is called when the process ends.
            multiprocessing.util.Finalize(None, self._thread.salvage, exitpriority=0)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: torch.Tensor,
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hands a batch's vectors `[B, D]` over, and raises what went wrong with earlier ones."""
        if lockstep.is_to_be_written(trainer, batch_idx):
            self._running().put(_copy_to_host(batch["index"], prediction))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what is left, tries rows without a finite vector again alone in float32, and closes the file."""
        thread, module = self._running(), cast(HiddenStateModule, pl_module)
        thread.finish()
        with self._open_journal(trainer.global_rank) as journal:
            for row in lockstep.agreed_rows(trainer, thread.not_finite):
                reason = module.rejections.get(row)
                if reason is None:
                    input_ids = cast(Any, trainer).datamodule.input_ids(row)
                    vector = module.recompute(input_ids)
                    if row not in thread.not_finite:  # another process's, which this one helped to compute
                        continue
                    if vector.isfinite().all():
                        journal.append(np.asarray([row]), vector[None].float().numpy())
                        continue
                    dtype = str(vector.dtype).removeprefix("torch.")
                    reason = f"the vector of its {len(input_ids)} tokens holds NaN or infinity, in {dtype} too"
                log.warning("row %d is rejected: %s", row, reason)
                journal.reject(row, reason, dimension=module.dimension)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes what was computed before the run failed; the failure itself stays the error that is raised."""
        if self._thread is not None:
            self._thread.salvage()

    def _open_journal(self, rank: int) -> JournalWriter:
        try:
            return JournalWriter(self.journal, rank=rank, fsync=self.fsync)
        except OSError as error:
            raise WriterError(f"{self.journal}: cannot be written: {one_line(error)}") from error

    def _running(self) -> _FlushThread:
        if self._thread is None:
            raise RuntimeError("predicting has not started")
        return self._thread


def _copy_to_host(index: torch.Tensor, vectors: torch.Tensor) -> _Copied:
    """Starts the copy to the host; on a GPU through pinned memory, so that the device does not wait for it."""
    if vectors.device.type != "cuda":
        return _Copied(index.cpu(), vectors.cpu(), None)
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True).copy_(vectors, non_blocking=True)
    host_index = torch.empty(index.shape, dtype=index.dtype, pin_memory=True).copy_(index, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return _Copied(host_index, host, done)


class _FlushThread:
    """A thread that turns batches into frames, and the queue before it.

    Args:
        journal: Where the frames go; closed when the thread ends.
        flush_every: Entries in a frame.
    """

    def __init__(self, journal: JournalWriter, *, flush_every: int) -> None:
        self.journal = journal
        self.flush_every = flush_every
        self.not_finite: list[int] = []
        self._seen = 0
        self._error: BaseException | None = None
        self._queue: queue.Queue[_Copied | None] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._vectors: NDArray[np.float32] | None = None
        self._thread = threading.Thread(target=self._run, name="memvec-writer", daemon=True)
        self._thread.start()

    def put(self, batch: _Copied) -> None:
        """Hands a batch over; waits while the queue is full."""
        self._raise_error()
        self._queue.put(batch)

    def finish(self) -> None:
        """Writes all that was handed over, closes the journal and raises what went wrong."""
        self.salvage()
        self._raise_error()

    def salvage(self) -> None:
        """Writes all that was handed over and closes the journal; does nothing the second time."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_error(self) -> None:
        if isinstance(self._error, WriterError):
            raise self._error
        if self._error is not None:
            raise WriterError(f"{self.journal.path}: cannot be written: {one_line(self._error)}") from self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                self._guard(lambda batch=batch: self._take(batch))  # type: ignore[misc]
        if self._error is None:
            self._guard(lambda: self._flush(len(self._rows)))
        self._guard(self.journal.close)

    def _guard(self, step: Callable[[], None]) -> None:
        """Keeps the first error for the predicting thread; the queue is emptied on, so that nobody waits for ever."""
        try:
            step()
        except BaseException as error:  # whatever it is, it ends the run
            self._error = self._error or error

    def _take(self, batch: _Copied) -> None:
        if batch.done is not None:
            batch.done.synchronize()
        rows, vectors = batch.rows.numpy(), batch.vectors.numpy()
        finite = np.isfinite(vectors).all(axis=1)  # [B]
        self.not_finite += rows[~finite].tolist()
        self._seen += len(rows)
        if len(self.not_finite) == self._seen >= BAD_ROWS_TO_STOP:
            raise WriterError(
                f"the first {self._seen} vectors all hold NaN or infinity: the model or its precision is broken "
                "(16-true overflows where bf16-true does not)"
            )
        self._rows = np.concatenate([self._rows, rows[finite]])
        self._vectors = vectors[finite] if self._vectors is None else np.concatenate([self._vectors, vectors[finite]])
        self._flush(len(self._rows) - len(self._rows) % self.flush_every)

    def _flush(self, count: int) -> None:
        """Appends the first `count` waiting rows, a frame for every `flush_every` of them."""
        if count == 0 or self._vectors is None:
            return
        for start in range(0, count, self.flush_every):
            part = slice(start, min(start + self.flush_every, count))
            self.journal.append(self._rows[part], self._vectors[part])
        self._rows, self._vectors = self._rows[count:], self._vectors[count:]
