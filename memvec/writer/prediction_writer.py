"""The prediction writers: Lightning callbacks that take what is predicted off the device and into the journal.

In: after each batch, its predictions on the device and its row numbers. Out: a journal frame every `flush_every`
entries.

How: on a background thread (`memvec.writer.thread`). The rows come from the batch itself: Lightning's own batch indices
are not relied upon.

What the rows of the journal are is a writer's own affair: `VectorWriter` here, `memvec.generation.writer` for texts. A
vector that holds NaN or infinity never reaches the journal: its row waits until all batches are done. A row whose
vector the chosen dtype cannot hold (`memvec.writer.form`) is rejected at once.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.util
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from memvec.config.values import at_least, one_of
from memvec.data.collator import Batch
from memvec.data.datamodule import plan_of
from memvec.data.prepared import read_signature
from memvec.errors import WriterError
from memvec.layout import RunLayout
from memvec.model.copies import to_host
from memvec.model.engine import computing_module
from memvec.model.module import HiddenStateModule
from memvec.schema import REASON
from memvec.writer.form import VectorForm
from memvec.writer.journal import JournalWriter
from memvec.writer.thread import FlushThread

# A run whose first vectors are all bad has a broken model, not bad rows.
BAD_ROWS_TO_STOP = 100
NOT_FINITE = (
    "all hold NaN or infinity: the model or its precision is broken (16-true overflows where bf16-true does not)"
)
REJECTED = "row %d is rejected: %s"

log = logging.getLogger(__name__)


class JournalCallback(BasePredictionWriter):
    """Appends predictions to this process's journal file; what a row of it holds is said by `to_rows`.

    Args:
        journal: The journal's folder; it exists when predicting starts.
        flush_every: Entries in a frame: at most so many, plus what was in flight, are lost when the process dies.
        fsync: When frames reach the disk itself; see `memvec.writer.journal.JournalWriter`.
    """

    def __init__(self, journal: Path, *, flush_every: int, fsync: Literal["flush", "close"]) -> None:
        super().__init__(write_interval="batch")
        self.journal = journal
        self.flush_every = at_least("writer.flush_every", flush_every, 1)
        self.fsync: Literal["flush", "close"] = one_of("writer.fsync", fsync, ("flush", "close"))
        self._thread: FlushThread | None = None

    def to_rows(self, index: NDArray[np.int64], predictions: NDArray[Any]) -> pa.RecordBatch:
        """Returns a batch's rows of the journal; called in the writer's thread.

        Args:
            index: Row numbers, `[B]`.
            predictions: What `predict_step` returned, `[B, …]`.
        """
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        """Returns what this writer has counted since predicting started, for the metrics."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides what is written, for the run's fingerprint."""
        return {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens this process's journal file."""
        journal = self._open_journal(trainer.global_rank)
        self._thread = FlushThread(journal, flush_every=self.flush_every, to_rows=self.to_rows)
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
        """Hands a batch's predictions `[B, …]` over, and raises what went wrong with earlier ones."""
        # Not a dummy batch; and of a tensor-parallel group, whose ranks compute the same batch, only the first writes.
        is_first = computing_module(pl_module).group.is_first_with_its_batches
        if is_first and not plan_of(trainer).sampler.is_dummy(batch_idx):
            self._running().put(to_host(batch["index"], prediction))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what is left and closes the file."""
        self._running().finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes what was computed before the run failed; the failure itself stays the error that is raised."""
        if self._thread is not None:
            self._thread.salvage()

    def _open_journal(self, rank: int) -> JournalWriter:
        signature = read_signature(RunLayout(self.journal.parent))
        return JournalWriter(self.journal, rank=rank, signature=signature, fsync=self.fsync)

    def _running(self) -> FlushThread:
        if self._thread is None:
            raise RuntimeError("predicting has not started")
        return self._thread


class VectorWriter(JournalCallback):
    """Appends predicted vectors to this process's journal file.

    Args:
        journal: The journal's folder; it exists when predicting starts.
        flush_every: Entries in a frame: at most so many, plus what was in flight, are lost when the process dies.
        keep_text: Whether the finished result has a `text` column; `memvec.writer.finalize` asks.
        dtype: Of the numbers in journal and result: `float32` or `float16`.
        normalize: Whether vectors are kept at unit length, each layer's for itself.
        fsync: When frames reach the disk itself; see `memvec.writer.journal.JournalWriter`.
    """

    def __init__(
        self,
        journal: Path,
        *,
        flush_every: int = 50,
        keep_text: bool = True,
        dtype: Literal["float32", "float16"] = "float32",
        normalize: bool = False,
        fsync: Literal["flush", "close"] = "close",
    ) -> None:
        super().__init__(journal, flush_every=flush_every, fsync=fsync)
        self.keep_text: bool = one_of("writer.keep_text", keep_text, (True, False))
        self.form = VectorForm(dtype, normalize)
        self._not_finite: list[int] = []
        self._seen = self._kept = 0

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides what is written, for the run's fingerprint."""
        return {"keep_text": self.keep_text, **self.form.fingerprint()}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens this process's journal file."""
        self._not_finite = []
        self._seen = self._kept = 0
        super().on_predict_start(trainer, pl_module)

    def to_rows(self, index: NDArray[np.int64], predictions: NDArray[np.float32]) -> pa.RecordBatch:
        """Returns the finite vectors, `[B, D]` or `[B, L, D]`; the others wait until all batches are done."""
        finite = np.isfinite(predictions).all(axis=tuple(range(1, predictions.ndim)))  # [B]
        self._not_finite += index[~finite].tolist()
        rows = self._kept_rows(index[finite], predictions[finite])
        self._seen += len(index)
        self._kept += rows.column(REASON).null_count
        if self._kept == 0 and self._seen >= BAD_ROWS_TO_STOP:
            why = f"cannot be kept: {rows.column(REASON)[0]}" if len(rows) else NOT_FINITE
            raise WriterError(found=f"the first {self._seen} vectors {why}")
        return rows

    def _kept_rows(self, index: NDArray[np.int64], vectors: NDArray[np.float32]) -> pa.RecordBatch:
        """Returns finite vectors in the form they are kept in, and says which cannot be."""
        rows = self.form.rows(index, vectors)
        for row, reason in zip(index.tolist(), rows.column(REASON).to_pylist(), strict=True):
            if reason is not None:
                log.warning(REJECTED, row, reason)
        return rows

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what is left, tries rows without a finite vector again alone in float32, and closes the file."""
        super().on_predict_end(trainer, pl_module)
        extractor = cast(HiddenStateModule, pl_module).engine
        with self._open_journal(trainer.global_rank) as journal:
            for row in extractor.group.union(self._not_finite):
                reason = extractor.rejections.get(row)
                if reason is None:
                    input_ids = plan_of(trainer).batches.input_ids(row)
                    vector = extractor.recompute(input_ids)
                    if row not in self._not_finite:  # another process's, which this one helped to compute
                        continue
                    if vector.isfinite().all():
                        journal.append_rows(self._kept_rows(np.asarray([row]), vector[None].float().numpy()))
                        continue
                    dtype = str(vector.dtype).removeprefix("torch.")
                    reason = f"the vector of its {len(input_ids)} tokens holds NaN or infinity, in {dtype} too"
                log.warning(REJECTED, row, reason)
                journal.reject(row, reason, dimension=math.prod(extractor.shape), dtype=self.form.dtype)
