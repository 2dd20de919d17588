"""The prediction writer: takes vectors off the device and into the journal, beside the computation.

In: after each batch, its vectors on the device and its row numbers. Out: a journal frame every `flush_every` entries.

How: the vectors are copied to the host without waiting, and a bounded queue hands them to a thread that waits for the
copy, checks them, gathers `flush_every` of them and appends the frame. A full queue holds the computation up, so nothing
grows; an error in the thread is raised in the training process at the next batch, so it is never silent. The rows come
from the batch itself: Lightning's own batch indices are not relied upon.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from memvec.config import at_least, one_of
from memvec.data.collator import Batch
from memvec.data.reader import one_line
from memvec.errors import WriterError
from memvec.writer.journal import JournalWriter

QUEUED_BATCHES = 8


class _Copied(NamedTuple):
    """A batch on its way from the device: complete once `done`, where there is one, has happened."""

    index: torch.Tensor
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
        try:
            journal = JournalWriter(self.journal, rank=trainer.global_rank, fsync=self.fsync)
        except OSError as error:
            raise WriterError(f"{self.journal}: cannot be written: {one_line(error)}") from error
        self._thread = _FlushThread(journal, flush_every=self.flush_every)

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
        self._running().put(_copy_to_host(batch["index"], prediction))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what is left and closes the file."""
        self._running().finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes what was computed before the run failed; the failure itself stays the error that is raised."""
        if self._thread is not None:
            self._thread.salvage()

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
    done = torch.cuda.Event()
    done.record()
    return _Copied(host_index, host, done)


class _FlushThread:
    """A thread that turns batches into frames, and the queue before it."""

    def __init__(self, journal: JournalWriter, *, flush_every: int) -> None:
        self.journal = journal
        self.flush_every = flush_every
        self._error: BaseException | None = None
        self._queue: queue.Queue[_Copied | None] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._index: list[NDArray[np.int64]] = []
        self._vectors: list[NDArray[np.float32]] = []
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
        try:
            while (batch := self._queue.get()) is not None:
                if self._error is None:
                    self._guard(self._take, batch)
            if self._error is None:
                self._guard(self._flush, sum(map(len, self._index)))
        finally:
            self._guard(self.journal.close)

    def _guard(self, step: Any, *arguments: Any) -> None:
        """Keeps the first error for the main thread, and keeps emptying the queue so that nobody waits for ever."""
        try:
            step(*arguments)
        except BaseException as error:  # whatever it is, it ends the run from the main thread
            self._error = self._error or error

    def _take(self, batch: _Copied) -> None:
        if batch.done is not None:
            batch.done.synchronize()
        self._index.append(batch.index.numpy())
        self._vectors.append(batch.vectors.numpy())
        waiting = sum(map(len, self._index))
        if waiting >= self.flush_every:
            self._flush(waiting - waiting % self.flush_every)

    def _flush(self, count: int) -> None:
        """Appends the first `count` waiting rows, a frame for every `flush_every` of them."""
        if count == 0:
            return
        index, vectors = np.concatenate(self._index), np.concatenate(self._vectors)
        for start in range(0, count, self.flush_every):
            stop = min(start + self.flush_every, count)
            self.journal.append(index[start:stop], vectors[start:stop])
        self._index, self._vectors = [index[count:]], [vectors[count:]]
