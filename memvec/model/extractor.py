"""The extractor: last-token hidden states of a batch of prompts, as fast as the model and the machine allow.

In: a `Batch` (`memvec.data.collator`). Out: `[B, D]` float32, the hidden state of each row's last token; of several
layers `[B, L, D]`.

How: it owns what makes a pass fast and what makes it trustworthy: the shared prefix's keys and values, packed
weights, the execution mode that the probe allows, and halving on out of memory. Lightning's module, a program's
encoder and the dry run all hold one; it knows nothing of trainers, files or configurations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from memvec.data.budget import TOKENS_ON_ACCELERATOR, TOKENS_ON_CPU
from memvec.data.collator import Batch, real_tokens
from memvec.data.trie import TokenTrie, build_trie
from memvec.errors import ModelError, one_line
from memvec.model.backbone import Backbone
from memvec.model.compilation import MOST_GAIN_OF_COMPILING, compile_decoder, has_enough
from memvec.model.copies import move_trie, to_device
from memvec.model.limits import attention_windows, length_boundaries
from memvec.model.lockstep import WeightGroup
from memvec.model.memory import compute_in_parts, is_out_of_memory
from memvec.model.packing import is_packed, unpack
from memvec.model.parity import ExecutionMode, choose_mode, parts_of_batch
from memvec.model.pooling import last_token
from memvec.model.prefix import SharedPrefix, share_prefix
from memvec.model.speedups import Speedups
from memvec.model.torch_internals import forget_compiled
from memvec.model.tuning import DEFAULT, UNUSABLE, Choice, choose_matmuls, measure
from memvec.model.unpadded import can_leave_padding_out, last_states

log = logging.getLogger(__name__)


class Extractor:
    """Maps batches of prompts to last-token hidden states.

    Args:
        backbone: Its weights are where they are computed, in the dtype they are computed in.
        speedups: Which ways to be fast are wanted.
        computed_in: Dtype that decides how exact vectors are: that of the weights, or of autocast.
        context: Entered around every pass, such as autocast.
        group: The processes that hold the weights together.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        speedups: Speedups,
        computed_in: torch.dtype,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        group: WeightGroup | None = None,
    ) -> None:
        self.backbone = backbone
        self.speedups = speedups
        self.computed_in = computed_in
        self.context = context
        self.group = group or WeightGroup()
        self.prefix: SharedPrefix | None = None
        self.mode = ExecutionMode.BATCHED
        self.probe_errors: dict[str, float] = {}
        self.matmuls: Choice | None = None
        self.compile_seconds: float | None = None
        self.rejections: dict[int, str] = {}  # rows that do not fit into memory even alone, and why

    @property
    def decoder(self) -> PreTrainedModel:
        """What every batch goes through."""
        return self.backbone.decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.group.device if self.group.is_sharded else self.decoder.device

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.backbone.dimension

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what one row gives: `[D]`, or of several layers `[L, D]`."""
        layers = len(self.backbone.layers)
        return (self.dimension,) if layers == 1 else (layers, self.dimension)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Lengths behind which the model computes in another way: rows on either side share no batch and no prefix."""
        return length_boundaries(self.decoder.config)

    @property
    def windows(self) -> tuple[int, ...]:
        """Lengths behind which layers no longer see all tokens: some rows that are longer are probed."""
        return attention_windows(self.decoder.config)

    @property
    def default_tokens(self) -> int:
        """Most tokens in a batch where nothing is known but the kind of device."""
        return TOKENS_ON_CPU if self.device.type == "cpu" else TOKENS_ON_ACCELERATOR

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Returns the vectors of a batch, `[B, D]` float32 on the extractor's device.

        A row that does not fit into memory even alone is NaN, and `rejections` says so.
        """
        vectors, too_large = self._compute(self.mode, batch)
        for row in too_large:
            index, tokens = int(batch["index"][row]), int(batch["length"][row])
            self.rejections[index] = f"out of memory: {tokens} tokens do not fit even alone"
        return vectors

    def recompute(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Computes one prompt alone in float32; to be called when no batch follows, since the weights are converted.

        Sharded weights stay as they are: float32 might not fit, and FSDP's cannot be converted.

        Args:
            input_ids: `[T]`.

        Returns:
            `[D]` on the CPU, of the dtype it was computed in.
        """
        if not self.group.is_sharded:
            unpack(self.backbone)
            self.backbone.float()
        length = torch.tensor([len(input_ids)], device=self.device)
        return self._pool(self.backbone(input_ids[None].to(self.device)), length)[0].cpu()

    # --- the steps of `memvec.model.warm_up`, in their order ---

    def share_prefix(self, input_ids: torch.Tensor) -> int:
        """Computes the prefix that prompts share, where that is wanted and valid.

        Args:
            input_ids: The tokens in common, `[P]` int64; may be empty.

        Returns:
            How many leading tokens of a prompt are not computed again: P or 0.
        """
        self.prefix = None
        if self.speedups.prefix_cache == "auto":
            with self.context():
                input_ids = input_ids.to(self.device)
                self.prefix = share_prefix(self.decoder, input_ids, others=self.backbone.token_types(input_ids[None]))
        self.mode = self._padded_mode
        return 0 if self.prefix is None else len(self.prefix)

    def seconds_per_token(self, batch: Batch) -> float | None:
        """Returns how long a token of a batch takes, padding counted, the shared prefix not.

        Returns:
            Seconds; None where the batch does not fit into memory.
        """
        batch = to_device(batch, self.device)
        prefix_length = batch["prefix_length"] if self.mode.shares_prefix else 0
        rows, width = batch["input_ids"].shape
        try:
            with self.context():
                fewest, _ = measure(lambda: self._whole(self.mode, batch).cpu(), calls=2)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return fewest / (rows * (width - prefix_length))

    def choose_matmuls(self, batch: Batch) -> None:
        """Packs the weights where that is faster, measured on a batch."""
        if self.speedups.tune == "auto":
            batch = to_device(batch, self.device)
            self.matmuls = choose_matmuls(
                self.decoder, lambda: self._compute(self.mode, batch)[0], dtype=self.computed_in
            )

    def choose_mode(self, probes: list[Batch]) -> None:
        """Takes the fastest execution mode that the model allows and that agrees with one row at a time.

        Args:
            probes: Rows to compare on; with none, everything stays as it is.

        Raises:
            ModelError: Padding is not right, without which processes with batches of their own cannot compute in step.
        """
        if not probes:
            return
        batches = [to_device(batch, self.device) for batch in probes]
        before, first = self.mode, self._fastest_mode
        if self.speedups.probe == "off":
            is_usable = first is not ExecutionMode.UNPADDED or self._tried(first, batches[:1]) is not None
            self.mode = first if is_usable else self._padded_mode
        else:
            self.mode, self.probe_errors = choose_mode(
                lambda mode: self._tried(mode, batches),
                first=first,
                without=(ExecutionMode.SHARED_PREFIX,) if self.prefix is None else (),
                dtype=self.computed_in,
                agree=self.group.maximum,
            )
        if before is ExecutionMode.UNPADDED and self.mode is not before:
            forget_compiled(self.decoder)  # layers that were to hold no cache
            self.compile_seconds = None
        if self.mode in (ExecutionMode.EQUAL_LENGTHS, ExecutionMode.ONE_BY_ONE) and self.group.has_own_batches:
            why = f"processes with batches of their own cannot compute {self.mode.value} in step"
            found = f"batches differ from one by one ({self.probe_errors}), and {why}"
            advice = "use trainer=tensor_parallel or trainer=ddp, or data.batch_size=1 model.probe=off"
            raise ModelError("parity probe", found=found, advice=advice)

    def compile(self, full_batch: Callable[[], Batch], *, batches: float) -> bool:
        """Compiles the layers, or what packed weights and a cache leave to compile.

        Args:
            full_batch: Returns a batch to try it on, and with `compile=auto` to measure it on.
            batches: How many of them there are to compute.

        Returns:
            Whether something is compiled now.
        """
        is_unpadded = self.mode is ExecutionMode.UNPADDED
        whole_layers = is_unpadded and (self.matmuls is None or self.matmuls.gain < MOST_GAIN_OF_COMPILING)
        tries = self.speedups.compile == "auto"
        if not (self.speedups.compile is True or (tries and whole_layers and has_enough(batches, on=self.device))):
            return False
        batch = to_device(full_batch(), self.device)
        if is_unpadded:
            batch["trie"] = trie_of(batch)

        def compute() -> torch.Tensor:
            return self._compute(self.mode, batch)[0].cpu()

        before, _ = measure(compute, calls=2) if tries else (torch.inf, None)
        if tries and not has_enough(batches, on=self.device, seconds=before):
            return False
        self.compile_seconds = compile_decoder(
            self.backbone, compute, whole_layers=whole_layers, unless_slower_than=before
        )
        if self.matmuls is not None and not is_packed(self.decoder):
            self.matmuls = replace(self.matmuls, matmuls=DEFAULT)
        return self.compile_seconds is not None

    # --- one batch ---

    def _tried(self, mode: ExecutionMode, batches: list[Batch]) -> torch.Tensor | None:
        """Returns the vectors of batches in a mode, `[B, D]`; None where the model asks for what has no padding."""
        try:
            return torch.cat([self._compute(mode, batch)[0] for batch in batches])
        except UNUSABLE as error:
            if mode is not ExecutionMode.UNPADDED:
                raise
            log.info("padding cannot be left out (%s)", one_line(error))
            return None

    @property
    def _fastest_mode(self) -> ExecutionMode:
        """The fastest mode that may be tried: padding is left out where that is wanted and the model may allow it.

        It is not measured: on two processors and on an H100 it was as fast or faster with every model and length that
        was tried (tests/benchmarks/README.md).
        """
        is_wanted = self.speedups.prefix_cache == "auto" and not self.group.is_sharded
        if is_wanted and can_leave_padding_out(self.decoder, computed_in=self.computed_in, device=self.device):
            return ExecutionMode.UNPADDED
        return self._padded_mode

    @property
    def _padded_mode(self) -> ExecutionMode:
        """The fastest mode with padding."""
        return ExecutionMode.BATCHED if self.prefix is None else ExecutionMode.SHARED_PREFIX

    def _compute(self, mode: ExecutionMode, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        """Computes a batch in a mode: `[B, D]`, and the positions of rows that do not fit into memory."""
        input_ids, length = batch["input_ids"], batch["length"]

        def compute(part: slice) -> torch.Tensor:
            if part == slice(0, len(length)):
                return self._whole(mode, batch)
            # A part has padding that none of its rows needs; asking for the width waits for the device, so only here.
            width = int(length[part].max())
            rows = Batch(
                index=batch["index"][part],
                input_ids=input_ids[part, :width],
                length=length[part],
                prefix_length=batch["prefix_length"],
                trie=None,
            )
            return self._whole(mode, rows)

        with self.context():
            return compute_in_parts(
                compute, parts=parts_of_batch(mode, length), shape=self.shape, may_halve=not self.group.is_sharded
            )

    def _whole(self, mode: ExecutionMode, batch: Batch) -> torch.Tensor:
        """Computes a batch in one pass: `[B, D]` float32."""
        input_ids, length, prefix_length = batch["input_ids"], batch["length"], batch["prefix_length"]
        if mode is ExecutionMode.UNPADDED:
            return _stacked(last_states(self.backbone, trie_of(batch))).float()
        if mode is ExecutionMode.SHARED_PREFIX and prefix_length and self.prefix is not None:
            cache = self.prefix.expand(len(input_ids))
            states = self.backbone(input_ids[:, prefix_length:], cache=cache)  # of each layer [B, T - P, D]
            return self._pool(states, length - prefix_length).float()
        return self._pool(self.backbone(input_ids), length).float()

    def _pool(self, states: tuple[torch.Tensor, ...], length: torch.Tensor) -> torch.Tensor:
        """Returns the last real token's state, `[B, D]`, or of several layers `[B, L, D]`, of their dtype."""
        return _stacked([last_token(state, length) for state in states])


def trie_of(batch: Batch) -> TokenTrie:
    """Returns a batch's tokens without padding, on the device of the batch."""
    if batch["trie"] is not None:
        return batch["trie"]
    length, device = batch["length"], batch["length"].device
    is_real = real_tokens(length, width=batch["input_ids"].shape[1])
    trie = build_trie(batch["input_ids"][is_real].cpu().numpy(), length.cpu().numpy())
    return move_trie(trie, lambda tensor: tensor.to(device))


def _stacked(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the vectors of several layers as `[B, L, D]`, of one as `[B, D]`."""
    return vectors[0] if len(vectors) == 1 else torch.stack(vectors, dim=1)
