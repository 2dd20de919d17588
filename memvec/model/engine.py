"""What computes batches, and the LightningModule around it, by what they have: vectors or texts alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from memvec.data.collator import Batch
from memvec.model.checkpoint import Checkpoint
from memvec.model.lockstep import WeightGroup
from memvec.model.parity import ExecutionMode
from memvec.model.prefix import SharedPrefix
from memvec.model.tuning import Choice

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Engine(Protocol):
    """What computes batches, with its steps of the warm-up."""

    group: WeightGroup
    computed_in: torch.dtype
    prefix: SharedPrefix | None
    mode: ExecutionMode
    probe_errors: dict[str, float]
    matmuls: Choice | None
    compile_seconds: float | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def decoder(self) -> nn.Module:
        """What every batch goes through."""

    @property
    def default_tokens(self) -> int:
        """Most tokens in a batch where nothing is asked for."""

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Lengths behind which the model computes in another way."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Lengths behind which layers no longer see all tokens."""

    def share_prefix(self, input_ids: torch.Tensor) -> int:
        """Computes the tokens that prompts share, `[P]`, where that is wanted and valid; returns P or 0."""

    def seconds_per_token(self, batch: Batch) -> float | None:
        """Returns how long a token of a batch takes; None where the batch does not fit into memory."""

    def choose_matmuls(self, batch: Batch) -> None:
        """Packs the weights where that is wanted and, measured on a batch, faster."""

    def choose_mode(self, probes: list[Batch]) -> None:
        """Takes the fastest way that the model allows; where that is wanted, only if it agrees with the plain one."""

    def compile(self, full_batch: Callable[[], Batch], *, batches: float) -> bool:
        """Compiles what can be compiled, where that is wanted, or pays with so many batches; says whether it has."""


class ComputingModule(Protocol):
    """`memvec.model.module.HiddenStateModule` or `memvec.generation.module.GenerationModule`."""

    checkpoint: Checkpoint

    @property
    def engine(self) -> Engine:
        """What computes; the warm-up has run."""

    @property
    def group(self) -> WeightGroup:
        """The processes that hold the weights together."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    def fingerprint(self, *, precision: str) -> dict[str, Any]:
        """Returns what decides what is computed of given tokens."""

    def notes(self) -> dict[str, Any]:
        """Returns what was found out while running, for the manifest."""


def computing_module(module: pl.LightningModule) -> ComputingModule:
    """Returns a module of memvec by what it has: Lightning hands callbacks its own base class."""
    return cast(ComputingModule, module)
