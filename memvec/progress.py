"""A progress bar that counts tokens.

In a run sorted by length, batches lie about time: the first hold few long texts, the last many short ones. Tokens,
padding included, are what takes time, so the bar's share and the time left are both told in them; entries a second
stand behind.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from memvec.data.collator import Batch


class TokenProgressBar(TQDMProgressBar):
    """Lightning's bar with tokens for its unit; only rank 0 shows it, and it counts rank 0's share."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._entries = 0

    def init_predict_tqdm(self) -> Tqdm:
        """Makes the bar; its total is known, since the batches are planned."""
        return Tqdm(
            desc=self.predict_description,
            total=cast(Any, self.trainer).datamodule.sampler.padded_tokens,  # the plan of this rank's batches
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            unit_scale=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tokens [{elapsed}<{remaining}{postfix}]",
        )

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Starts the clock at the first batch, behind the probe; the base class would count batches."""
        if batch_idx == 0:
            self._entries = 0
            self.predict_progress_bar.reset()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advances by the tokens that were planned; the batch's shape tells, so no device is waited for."""
        if cast(Any, trainer).datamodule.sampler.is_filler(batch_idx):
            return
        rows, width = batch["input_ids"].shape
        tokens = cast(Any, trainer).datamodule.row_tokens(width, batch["prefix_length"])
        self._entries += rows
        bar = self.predict_progress_bar
        elapsed = bar.format_dict["elapsed"]
        bar.set_postfix_str(f"{self._entries / elapsed:,.1f} entries/s" if elapsed else "", refresh=False)
        bar.update(rows * tokens)
