"""The LightningModule of vectors: a batch of prompts in, a supervision vector for each out.

In: a `Batch` (`memvec.data.collator`). Out: `[B, D]` float32, the hidden state of each row's last token; of several
layers `[B, L, D]`.

How: weights are loaded in `configure_model`, which Lightning calls once on every process, after the processes exist and
in the strategy's own context; until then the module only knows the model's name, so it is cheap to build and to pickle.
Where no row is left to compute, they are not loaded at all.
The data module calls `warm_up` when it knows the rows; from then on `extractor` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from transformers import PreTrainedModel

from memvec.config.values import one_or_more_layers, one_text_or_none
from memvec.data.batches import PromptTable
from memvec.data.collator import Batch
from memvec.data.datamodule import is_anything_left
from memvec.data.plan import BatchPlan, Ranks
from memvec.data.rules import BatchRules
from memvec.model.backbone import Backbone
from memvec.model.checkpoint import Checkpoint, locate_model
from memvec.model.extractor import Extractor
from memvec.model.lockstep import WeightGroup
from memvec.model.parallel import shard_weights, weights_mesh
from memvec.model.speedups import Speedups
from memvec.model.warm_up import warm_up, warm_up_notes
from memvec.model.widening import widen_where_slow

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


def weights_dtype(precision: str) -> torch.dtype:
    """Returns the dtype of the weights that a `trainer.precision` stands for."""
    return DTYPES.get(precision, torch.float32)


def computing_dtype(precision: str, weights: torch.dtype) -> torch.dtype:
    """Returns the dtype that decides how exact a computation is: that of the weights, or of autocast."""
    return torch.bfloat16 if "mixed" in precision else weights


def model_fingerprint(checkpoint: Checkpoint, *, precision: str) -> dict[str, Any]:
    """Returns what decides what a model computes of given tokens, for a run's fingerprint."""
    dtype = str(weights_dtype(precision)).removeprefix("torch.")
    return {**checkpoint.identity, "dtype": dtype, "precision": precision}


class HiddenStateModule(pl.LightningModule):
    """Maps prompts to last-token hidden states.

    Args:
        name_or_path: Model folder, `.gguf` file, `gguf:<package>` or Hub name.
        layer: Which hidden state, as in `hidden_states[layer]`; -1 is after the final norm. A list gives several, each
            with a column of its own in the result.
        revision: Of a Hub model; None is its main branch.
        adapter: Folder or Hub name (`owner/name@revision`) of a LoRA adapter that is merged into the weights.
        prefix_cache: `auto` computes the tokens that prompts begin with once and leaves padding out, where the
            model allows; `off` computes every token of every row.
        attn_implementation: transformers' name (`sdpa`, `eager`, `flash_attention_2`); None is the model's default.
        tune: `auto` measures on a CPU whether packed weights are faster, and computes in float32 the half
            precision in which the CPU is slower; `off` leaves weights as they are.
        compile: Whether layers, or what of them holds no cache, are compiled, which costs 5 to 60 seconds; `auto` does
            where that pays and is faster.
        probe: `auto` compares the fast way with the plain one on a few rows before it is trusted; `off` trusts it.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled checkpoints, which can run code, are refused.

    Raises:
        ModelError: There is no such model folder, file or package.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        layer: int | Sequence[int] = -1,
        revision: str | None = None,
        adapter: str | None = None,
        prefix_cache: Literal["auto", "off"] = "auto",
        attn_implementation: str | None = None,
        tune: Literal["auto", "off"] = "auto",
        compile: bool | Literal["auto"] = "auto",  # noqa: A002 - the field's name for it
        probe: Literal["auto", "off"] = "auto",
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
    ) -> None:
        super().__init__()
        self.checkpoint = Checkpoint(
            locate_model(name_or_path),
            revision=revision,
            adapter=one_text_or_none("model.adapter", adapter),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        self.layer = one_or_more_layers("model.layer", layer)
        self.speedups = Speedups(prefix_cache, tune, compile, probe)
        self.backbone: Backbone | None = None
        self.extractor: Extractor | None = None

    @property
    def layers(self) -> list[int]:
        """The layer, or layers, as a list."""
        return [self.layer] if isinstance(self.layer, int) else self.layer

    @property
    def decoder(self) -> PreTrainedModel:
        """What every batch goes through; the weights are loaded."""
        return self.engine.decoder

    @property
    def engine(self) -> Extractor:
        """What computes; `warm_up` has run."""
        if self.extractor is None:
            raise RuntimeError("warm_up has not run: use this module with a Lightning Trainer and memvec's data module")
        return self.extractor

    @property
    def group(self) -> WeightGroup:
        """The processes that hold the weights together."""
        return WeightGroup.of_strategy(self.device_mesh, self.device)

    def fingerprint(self, *, precision: str) -> dict[str, Any]:
        """Returns what decides the vectors of given tokens, for the run's fingerprint."""
        described = model_fingerprint(self.checkpoint, precision=precision)
        types = {"token_types": True} if self.checkpoint.takes_token_types else {}
        return {"model": described.pop("model"), "layer": self.layer, **described, **types}

    def backbone_of(self, decoder: PreTrainedModel) -> Backbone:
        """Returns what computes the module's layers with a decoder of its checkpoint."""
        return Backbone(decoder, layers=self.layers, has_token_types=self.checkpoint.takes_token_types).eval()

    def configure_model(self) -> None:
        """Loads the weights, in the dtype that `trainer.precision` stands for; or this process's part of them."""
        if self.backbone is None and is_anything_left(self.trainer):
            dtype = weights_dtype(str(self.trainer.precision))
            self.backbone = self.backbone_of(self.checkpoint.load_decoder(dtype))
            if (mesh := weights_mesh(self.device_mesh)) is not None:
                shard_weights(self.backbone, mesh)

    def warm_up(self, table: PromptTable, rules: BatchRules, ranks: Ranks) -> BatchPlan:
        """Makes the extractor ready for the rows of a table, and plans this rank's batches.

        The weights are widened first, once Lightning has cast them: that decides how the rest computes.
        """
        if self.backbone is None:
            raise RuntimeError("configure_model has not run: use this module with a Lightning Trainer")
        if self.speedups.tune == "auto" and not self.group.is_sharded:
            widen_where_slow(self.backbone.decoder, processes=self.trainer.num_devices)
        self.extractor = Extractor(
            self.backbone,
            speedups=self.speedups,
            computed_in=computing_dtype(str(self.trainer.precision), self.backbone.decoder.dtype),
            context=self.trainer.precision_plugin.predict_step_context,
            group=self.group,
        )
        return warm_up(self.extractor, table, rules, ranks=ranks)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> torch.Tensor:
        """Returns the supervision vectors of a batch, `[B, D]` or `[B, L, D]` float32 on the module's device."""
        return self.engine(batch)

    def on_predict_end(self) -> None:
        """Frees the weights, which Lightning's `Strategy.teardown` would copy to host memory.

        Of a model of eight billion weights these are 16 GB, in eight seconds on an H100.
        """
        self.backbone = self.extractor = None

    def has_own_batches_in_step(self) -> bool:
        """Whether processes with batches of their own must run equally many of them."""
        return self.group.has_own_batches

    def notes(self) -> dict[str, Any]:
        """Returns what was found out while running, for the manifest."""
        return warm_up_notes(self.extractor)
