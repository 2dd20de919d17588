"""The background thread that turns predicted batches into frames of the journal, and the queue before it.

In: row numbers and predictions on the device. Out: a frame every `flush_every` rows.

How: predictions are copied to the host without waiting; the thread waits for the copy, makes rows of the journal,
gathers `flush_every` of them and appends the frame. A full queue holds the computation up, so nothing grows. An error
in the thread is raised in the predicting thread at the next batch, so it is never silent.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.model.copies import CopiedBatch
from memvec.writer.journal import JournalWriter

QUEUED_BATCHES = 8


class FlushThread:
    """A thread that turns batches into frames, and the queue before it.

    Args:
        journal: Where the frames go; closed when the thread ends.
        flush_every: Entries in a frame.
        to_rows: Makes row numbers and predictions the journal's rows.
    """

    def __init__(
        self,
        journal: JournalWriter,
        *,
        flush_every: int,
        to_rows: Callable[[NDArray[np.int64], NDArray[Any]], pa.RecordBatch],
    ) -> None:
        self.journal = journal
        self.flush_every = flush_every
        self.to_rows = to_rows
        self._error: BaseException | None = None
        self._queue: queue.Queue[CopiedBatch | None] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._waiting: pa.RecordBatch | None = None
        self._thread = threading.Thread(target=self._run, name="memvec-writer", daemon=True)
        self._thread.start()

    def put(self, batch: CopiedBatch) -> None:
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
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                self._guard(lambda batch=batch: self._take(batch))  # type: ignore[misc]
        if self._error is None:
            self._guard(lambda: self._flush(1))
        self._guard(self.journal.close)

    def _guard(self, step: Callable[[], None]) -> None:
        """Keeps the first error for the predicting thread; the queue is emptied on, so that nobody waits for ever."""
        try:
            step()
        except BaseException as error:  # whatever it is, it ends the run
            self._error = self._error or error

    def _take(self, batch: CopiedBatch) -> None:
        batch.wait()
        rows = self.to_rows(batch.rows.numpy(), batch.predictions.numpy())
        self._waiting = rows if self._waiting is None else pa.concat_batches([self._waiting, rows])
        self._flush(self.flush_every)

    def _flush(self, smallest: int) -> None:
        """Appends frames of `flush_every` rows, as long as at least `smallest` rows wait."""
        while self._waiting is not None and self._waiting.num_rows >= smallest:
            self.journal.append_rows(self._waiting.slice(0, self.flush_every))
            self._waiting = self._waiting.slice(self.flush_every)
