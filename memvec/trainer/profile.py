"""A torch profile of a run's first batches, on request.

In: a run. Out, in its `profile/`: for each rank a table of the operations that took longest, and a trace that opens in
`chrome://tracing` or Perfetto.

Why not Lightning's own profiler: its schedule begins after the first batch, so that a run of one batch has no profile;
and generating is hundreds of steps a batch, of which one is enough. Nothing has to be warmed up first: choosing matmuls
and probing have run the model before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from memvec.files import atomic_file, make_folder

ROWS = 40


class BatchProfile(pl.Callback):
    """Records the first batches.

    Args:
        folder: Where table and trace go.
        batches: How many batches; fewer where the run has fewer.
    """

    def __init__(self, folder: Path, *, batches: int) -> None:
        self.folder = folder
        self.batches = batches
        self._profile: torch.profiler.profile | None = None

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begins with the first batch."""
        if batch_idx == 0 and self._profile is None:
            self._profile = torch.profiler.profile()
            self._profile.start()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ends with the last one to record."""
        if batch_idx + 1 == self.batches:
            self._finish(trainer.global_rank)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends where there were fewer batches."""
        self._finish(trainer.global_rank)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keeps what was recorded of a run that is stopped."""
        self._finish(trainer.global_rank)

    def _finish(self, rank: int) -> None:
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        make_folder(self.folder)
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=ROWS)
        with atomic_file(self.folder / f"operations-rank-{rank:05d}.txt") as partial:
            partial.write_text(table, encoding="utf-8")
        with atomic_file(self.folder / f"trace-rank-{rank:05d}.json") as partial:
            profile.export_chrome_trace(str(partial))
