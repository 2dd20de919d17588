"""The LightningModule: a batch of prompts in, a supervision vector for each out.

In: a `Batch` (`memvec.data.collator`). Out: `[B, D]` float32, the hidden state of each row's last token.

How: weights are loaded in `configure_model`, which Lightning calls once on every process, after the processes exist and
in the strategy's own context; until then the module only knows the model's name, so it is cheap to build and to pickle.
The data module has it `prepare_weights`, and asks it for `share_prefix` before it plans the batches, since what a row
costs depends on the answer.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from transformers import PreTrainedModel

from memvec.config.values import at_least, one_of
from memvec.data.collator import Batch
from memvec.errors import ModelError
from memvec.model import lockstep
from memvec.model.backbone import Backbone, layer_position
from memvec.model.checkpoint import Checkpoint, locate_model
from memvec.model.compilation import compile_regions
from memvec.model.memory import compute_in_parts, is_out_of_memory
from memvec.model.packing import unpack
from memvec.model.parallel import in_words, share_weights, weights_mesh
from memvec.model.parity import Path, choose_path
from memvec.model.pooling import last_token
from memvec.model.prefix import SharedPrefix, compute_prefix
from memvec.model.tuning import (
    Choice,
    attention_choices,
    choose_kernels,
    measure,
    product_choices,
    use_attention,
)
from memvec.model.widening import widen_where_emulated

log = logging.getLogger(__name__)

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


class HiddenStateModule(pl.LightningModule):
    """Maps prompts to last-token hidden states.

    Args:
        name_or_path: Model folder, `.gguf` file, `gguf:<package>` or Hub name.
        layer: Which hidden state, as in `hidden_states[layer]`; -1 is after the final norm.
        revision: Of a Hub model; None is its main branch.
        prefix_cache: `auto` computes the tokens that all prompts share once, where the model allows; `off` never.
        attn_implementation: transformers' name (`sdpa`, `eager`, `flash_attention_2`); None is the model's default.
        tune: `auto` measures on a CPU which attention and matrix-product kernels are fastest, and computes in float32
            what the CPU would emulate; `off` takes the defaults.
        compile: Whether norms and feed-forward blocks are compiled, which costs 10 to 20 seconds.
        probe: `auto` compares the fast path with the plain one on a few rows before it is trusted; `off` trusts it.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled checkpoints, which can run code, are refused.

    Raises:
        ModelError: There is no such model folder, file or package.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        layer: int = -1,
        revision: str | None = None,
        prefix_cache: Literal["auto", "off"] = "auto",
        attn_implementation: str | None = None,
        tune: Literal["auto", "off"] = "auto",
        compile: bool = False,  # noqa: A002 - the field's name for it
        probe: Literal["auto", "off"] = "auto",
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
    ) -> None:
        super().__init__()
        self.checkpoint = Checkpoint(
            locate_model(name_or_path),
            revision=revision,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        self.layer = at_least("model.layer", layer, -(10**6))
        self.prefix_cache = one_of("model.prefix_cache", prefix_cache, ("auto", "off"))
        self.tune = one_of("model.tune", tune, ("auto", "off"))
        self.compile_wanted = one_of("model.compile", compile, (True, False))
        self.compile_seconds: float | None = None
        self.probe = one_of("model.probe", probe, ("auto", "off"))
        self.backbone: Backbone | None = None
        self.prefix: SharedPrefix | None = None
        self.path = Path.BATCHED
        self.probe_errors: dict[str, float] = {}
        self.kernels: Choice | None = None
        self.rejections: dict[int, str] = {}

    @property
    def dimension(self) -> int:
        """D, the length of a vector; the weights are loaded."""
        return self._backbone().dimension

    @property
    def decoder(self) -> PreTrainedModel:
        """What every batch goes through; the weights are loaded."""
        return self._backbone().decoder

    def fingerprint(self, *, precision: str) -> dict[str, Any]:
        """Returns what decides the vectors of given tokens, for the run's fingerprint.

        Raises:
            ConfigError: The model has no such layer.
        """
        layer_position(self.checkpoint.config, self.layer)
        return {
            "model": self.checkpoint.digest,
            "layer": self.layer,
            "dtype": str(DTYPES.get(precision, torch.float32)).removeprefix("torch."),
            "precision": precision,
        }

    def configure_model(self) -> None:
        """Loads the weights, in the dtype that `trainer.precision` stands for; or this process's part of them."""
        if self.backbone is None:
            dtype = DTYPES.get(str(self.trainer.precision), torch.float32)
            self.backbone = Backbone(self.checkpoint.load_decoder(dtype), layer=self.layer).eval()
            if (mesh := weights_mesh(self.device_mesh)) is not None:
                share_weights(self.backbone, mesh)

    def prepare_weights(self) -> None:
        """Holds the weights in the dtype they are computed in, once Lightning has cast them to `trainer.precision`."""
        if self.tune == "auto" and not self.has_shared_weights:
            widen_where_emulated(self._model_to_tune(), processes=self.trainer.num_devices)

    def share_prefix(self, input_ids: torch.Tensor) -> int:
        """Computes the prefix that prompts share, where that is wanted and valid.

        Args:
            input_ids: The tokens in common, `[P]` int64; may be empty.

        Returns:
            How many leading tokens of a prompt `predict_step` will not compute again: P or 0.
        """
        self.prefix, self.path = None, Path.BATCHED
        if self.prefix_cache == "off" or len(input_ids) == 0:
            return 0
        with self.trainer.precision_plugin.predict_step_context():
            prefix = compute_prefix(self.decoder, input_ids.to(self.device))
        if isinstance(prefix, str):
            log.info("the prompts' shared prefix is computed anew in every batch: %s", prefix)
            return 0
        self.prefix, self.path = prefix, Path.SHARED_PREFIX
        log.info("the prompts share their first %d tokens, which are computed once", len(prefix))
        return len(prefix)

    def seconds_per_token(self, batch: Batch) -> float | None:
        """Returns how long a token of a batch takes, padding counted, the shared prefix not.

        Returns:
            Seconds; None where the batch does not fit into memory.
        """
        batch = move_data_to_device(batch, self.device)
        prefix_length = batch["prefix_length"] if self.path is Path.SHARED_PREFIX else 0
        rows, width = batch["input_ids"].shape
        try:
            with self.trainer.precision_plugin.predict_step_context():
                fewest, _ = measure(
                    lambda: self._vectors(batch["input_ids"], batch["length"], prefix_length).cpu(), calls=2
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return fewest / (rows * (width - prefix_length))

    def on_predict_start(self) -> None:
        """Makes the model fast on this machine, then probes whether the fast path can be trusted; on real rows."""
        datamodule = cast(Any, self.trainer).datamodule
        # Where weights are shared out, processes with other batches would each measure something else: no tuning there.
        if not self.has_shared_weights and (typical := datamodule.typical_batch()) is not None:
            batch = move_data_to_device(typical, self.device)
            if self.tune == "auto" and datamodule.pays_measuring:
                self._choose_kernels(batch)
            if self.compile_wanted:  # what the chosen kernels left to compile
                self.compile_seconds = compile_regions(self.decoder, lambda: self._run(self.path, batch))
        if self.probe == "auto":
            self._choose_path([move_data_to_device(batch, self.device) for batch in datamodule.batches.to_probe()])

    def _choose_kernels(self, batch: Batch) -> None:
        decoder, dtype = self._model_to_tune(), self._precision()
        products = product_choices(decoder, computed_in=dtype, device=self.device)
        attentions = self._attentions_to_try()
        if len(products) * len(attentions) > 1:
            self.kernels = choose_kernels(
                decoder,
                lambda: self._measured(batch),
                products=products,
                attentions=attentions,
                dtype=dtype,
                tokens=batch["input_ids"].shape[1],
            )

    def _attentions_to_try(self) -> list[str]:
        """Returns the attention implementations to measure, the present one first."""
        present = self.decoder.config._attn_implementation
        has_user_chosen = self.checkpoint.attn_implementation is not None
        return [present] if has_user_chosen else attention_choices(present, device=self.device)

    def _model_to_tune(self) -> PreTrainedModel:
        return self.decoder

    def _measured(self, batch: Batch) -> torch.Tensor:
        """Computes what kernels are timed on, and judged by."""
        return self._run(self.path, batch)

    def _choose_path(self, probes: list[Batch]) -> None:
        def compute(path: Path) -> torch.Tensor:
            return torch.cat([self._run(path, batch) for batch in probes])

        if not probes:
            return
        self.path, self.probe_errors = choose_path(
            compute,
            first=self.path,
            dtype=self._precision(),
            agree=lambda error: lockstep.agreed_maximum(self.trainer, error),
        )
        if self.path is Path.ONE_BY_ONE and lockstep.has_own_batches_in_step(self.trainer):
            raise ModelError(
                f"parity probe: batches differ from one by one ({self.probe_errors}), and processes with batches of "
                "their own cannot compute one by one in step; use trainer=tensor_parallel or trainer=ddp, or "
                "data.batch_size=1 model.probe=off"
            )

    def _run(self, path: Path, batch: Batch) -> torch.Tensor:
        """Computes a batch outside the predict loop, in the precision that the loop uses."""
        with self.trainer.precision_plugin.predict_step_context():
            return self._vectors_along(path, batch)[0]

    def _precision(self) -> torch.dtype:
        """The dtype that decides how exact vectors are: that of the weights, or of autocast."""
        return torch.bfloat16 if "mixed" in str(self.trainer.precision) else self.decoder.dtype

    def notes(self) -> dict[str, Any]:
        """Returns what was found out while running, for the manifest."""
        return {
            "weights": in_words(weights_mesh(self.device_mesh)),
            "computed_in": None if self.backbone is None else str(self._precision()).removeprefix("torch."),
            "path": self.path.value,
            "probe_relative_error": self.probe_errors,
            "kernels": str(self.kernels.kernels) if self.kernels is not None else "default",
            "kernel_milliseconds": self.kernels.milliseconds if self.kernels is not None else {},
            "compile_seconds": self.compile_seconds,
            "prefix_tokens": len(self.prefix) if self.prefix is not None and self.path is Path.SHARED_PREFIX else 0,
        }

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> torch.Tensor:
        """Returns the supervision vectors of a batch, `[B, D]` float32 on the module's device.

        A row that does not fit into memory even alone is NaN, and `rejections` says so.
        """
        vectors, too_large = self._vectors_along(self.path, batch)
        for row in too_large:
            index, tokens = int(batch["index"][row]), int(batch["length"][row])
            self.rejections[index] = f"out of memory: {tokens} tokens do not fit even alone"
        return vectors

    def recompute(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Computes one prompt alone in float32; to be called when no batch follows, since the weights are converted.

        Where weights are shared out they stay as they are: float32 might not fit, and FSDP's cannot be converted.

        Args:
            input_ids: `[T]`.

        Returns:
            `[D]` on the CPU, of the dtype it was computed in.
        """
        backbone = self._backbone()
        if not self.has_shared_weights:
            unpack(backbone)
            backbone.float()
        length = torch.tensor([len(input_ids)], device=self.device)
        return last_token(backbone(input_ids[None].to(self.device)), length)[0].cpu()

    def _vectors_along(self, path: Path, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        """Computes a batch along a path: `[B, D]`, and the positions of rows that do not fit into memory."""
        input_ids, length = batch["input_ids"], batch["length"]
        prefix_length = batch["prefix_length"] if path is Path.SHARED_PREFIX else 0

        def compute(part: slice) -> torch.Tensor:
            # A part has padding that none of its rows needs; asking for the width waits for the device, so only then.
            width = int(length[part].max()) if part != slice(0, rows) else input_ids.shape[1]
            return self._vectors(input_ids[part, :width], length[part], prefix_length)

        rows = len(input_ids)
        most = 1 if path is Path.ONE_BY_ONE else rows
        return compute_in_parts(
            compute, rows=rows, most=most, dimension=self.dimension, may_halve=not self.has_shared_weights
        )

    def _vectors(self, input_ids: torch.Tensor, length: torch.Tensor, prefix_length: int) -> torch.Tensor:
        if self.kernels is not None:
            use_attention(self.decoder, self.kernels.attention_for(input_ids.shape[1]))
        if prefix_length and self.prefix is not None:
            cache = self.prefix.expand(len(input_ids))
            hidden = self._backbone()(input_ids[:, prefix_length:], cache=cache)  # [B, T, D] -> [B, T - P, D]
            return last_token(hidden, length - prefix_length).float()
        return last_token(self._backbone()(input_ids), length).float()

    @property
    def has_shared_weights(self) -> bool:
        """Whether several processes hold one copy of the weights together, and so compute in step."""
        return weights_mesh(self.device_mesh) is not None

    def _backbone(self) -> Backbone:
        if self.backbone is None:
            raise RuntimeError("configure_model has not run: use this module with a Lightning Trainer")
        return self.backbone
