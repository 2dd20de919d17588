"""A progress bar that counts tokens.

In a run sorted by length, batches lie about time: the first hold few long texts, the last many short ones. Tokens,
padding included, are what takes time, so the bar's share and the time left are both told in them; entries a second
stand behind. It advances whenever the decoder is called, since a batch that is generated takes hundreds of calls.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import nn
from torch.utils.hooks import RemovableHandle

from memvec.data.collator import Batch
from memvec.data.datamodule import plan_of
from memvec.model.engine import computing_module


class TokenProgressBar(TQDMProgressBar):
    """Lightning's bar with tokens for its unit; rank 0 alone shows one, of its own share, and says so."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._entries = 0
        self._left_in_batch = 0
        self._hook: RemovableHandle | None = None

    def init_predict_tqdm(self) -> Tqdm:
        """Makes the bar; its total is known, since the batches are planned."""
        ranks = self.trainer.world_size
        return Tqdm(
            desc=self.predict_description if ranks == 1 else f"Rank 0 of {ranks}",
            total=plan_of(self.trainer).sampler.padded_tokens,
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
            decoder = computing_module(pl_module).engine.decoder
            self._hook = decoder.register_forward_hook(self._advance_by_call, with_kwargs=True)
        self._left_in_batch = plan_of(trainer).batch_tokens(batch_idx, batch)

    def _advance_by_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = kwargs.get("input_ids")
        self._advance(0 if given is None else given.numel())

    def _advance(self, tokens: int) -> None:
        """Advances, as far as the batch has been planned: a part of it may be computed twice, where memory ran out."""
        tokens = min(tokens, self._left_in_batch)
        self._left_in_batch -= tokens
        self.predict_progress_bar.update(tokens)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advances by what is left of the batch; no device is waited for."""
        if plan_of(trainer).sampler.is_dummy(batch_idx):
            return
        self._entries += len(batch["input_ids"])
        bar = self.predict_progress_bar
        elapsed = bar.format_dict["elapsed"]
        bar.set_postfix_str(f"{self._entries / elapsed:,.1f} entries/s" if elapsed else "", refresh=False)
        self._advance(self._left_in_batch)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar and lets go of the decoder."""
        super().on_predict_end(trainer, pl_module)
        if self._hook is not None:
            self._hook.remove()
