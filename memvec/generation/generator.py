"""The generator: what a language model writes to a batch of prompts.

In: a left-padded `Batch` (`memvec.data.collator`). Out: `[B, G]` int64, the tokens written, -1 behind a row's end.

How: transformers' `generate` on the whole model. It goes through the same warm-up as the extractor of vectors
(`memvec.model.warm_up`), made of the same parts; what is compared here is the scores of the next tokens. With padding
on the left the shared prefix stands before the padding; positions are counted without it, so attention over whole keys
and values cannot tell. Sliding windows can, since they count places, so a model with any runs without the prefix.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from memvec.data.collator import Batch, real_tokens
from memvec.generation.cache import bytes_per_token, preallocated_cache
from memvec.generation.decoding import Prompts, write_answers
from memvec.generation.replay import StepReplay
from memvec.generation.sampling import Sampling, row_seed
from memvec.model.compilation import compile_regions
from memvec.model.copies import to_device
from memvec.model.limits import attention_windows, length_boundaries
from memvec.model.lockstep import WeightGroup
from memvec.model.memory import compute_in_parts
from memvec.model.parity import ExecutionMode, choose_mode, parts_of_batch, relative_error, tolerance_of
from memvec.model.prefix import SharedPrefix, share_prefix
from memvec.model.speedups import Speedups
from memvec.model.tuning import Choice, choose_matmuls

# Tokens decoded while matmuls are timed: decoding then takes about as long as the prefill before it.
TOKENS_TO_MEASURE = 8
# The first comes with prefill; of the others, two are replayed from one record.
TOKENS_TO_PROBE = 3
# Rows decode together, and the more of them, the less each costs: a batch is as large as its keys and values may be.
CACHE_BYTES_ON_CPU = 2 * 2**30
CACHE_SHARE_OF_FREE_MEMORY = 0.4  # of an accelerator's, with the weights on it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """How an answer is written.

    Args:
        sampling: How tokens are chosen.
        end_token_ids: An answer ends with the first of these.
        max_new_tokens: Most tokens of an answer.
        seed: What is drawn depends on this, the row and the attempt, never on the batch.
    """

    sampling: Sampling
    end_token_ids: list[int]
    max_new_tokens: int
    seed: int


class Generator:
    """Writes an answer to each prompt of a batch.

    Args:
        model: The whole language model, in evaluation mode, where it computes.
        decoding: How an answer is written.
        speedups: Which ways to be fast are wanted.
        computed_in: Dtype that decides how exact scores are.
        context: Entered around every pass, such as autocast.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        decoding: Decoding,
        speedups: Speedups,
        computed_in: torch.dtype,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.decoding = decoding
        self.speedups = speedups
        self.computed_in = computed_in
        self.context = context
        self.group = WeightGroup()
        self.prefix: SharedPrefix | None = None
        self.mode = ExecutionMode.BATCHED
        self.probe_errors: dict[str, float] = {}
        self.matmuls: Choice | None = None
        self.replay: StepReplay | None = None  # of decode steps
        self.compile_seconds: float | None = None
        self.rejections: dict[int, str] = {}  # rows that do not fit into memory even alone, and why

    @property
    def decoder(self) -> PreTrainedModel:
        """What every batch goes through, without the language-model head."""
        model: Any = self.model
        decoder: PreTrainedModel = model.get_decoder()
        return decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Lengths behind which the model computes in another way."""
        return length_boundaries(self.model.config)

    @property
    def windows(self) -> tuple[int, ...]:
        """Lengths behind which layers no longer see all tokens: some rows that are longer are probed."""
        return attention_windows(self.model.config)

    @property
    def default_tokens(self) -> int:
        """Most tokens in a batch: as many as memory has room for keys and values of, in all layers."""
        free = CACHE_BYTES_ON_CPU
        if self.device.type == "cuda":
            free = int(torch.cuda.mem_get_info(self.device)[0] * CACHE_SHARE_OF_FREE_MEMORY)
        with self.context():
            return max(1, free // bytes_per_token(self.decoder))

    def __call__(self, batch: Batch, *, attempt: int = 0, temperature: float | None = None) -> torch.Tensor:
        """Returns what is written to each row, `[B, max_new_tokens]` int64 with -1 behind its end.

        A row that does not fit into memory even alone has written nothing at all, and `rejections` says so.

        Args:
            batch: B prompts.
            attempt: Which time these rows are tried, from 0.
            temperature: In place of the sampling's own.
        """
        sampling = self.decoding.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        with self.context():
            written, too_large = compute_in_parts(
                lambda part: self._write(batch, part, sampling=sampling, attempt=attempt),
                parts=parts_of_batch(self._mode_of(batch["length"]), batch["length"]),
                shape=(self.decoding.max_new_tokens,),
                missing=-1,
            )
        for row in too_large:
            tokens = int(batch["length"][row])
            reason = f"out of memory: {tokens} tokens and {self.decoding.max_new_tokens} new ones do not fit even alone"
            self.rejections[int(batch["index"][row])] = reason
        return written

    # --- the steps of `memvec.model.warm_up`, in their order ---

    def share_prefix(self, input_ids: torch.Tensor) -> int:
        """Computes the prefix that prompts share, `[P]`, where that is wanted and valid; returns P or 0."""
        self.prefix = None
        if self.speedups.prefix_cache == "auto":
            with self.context():
                self.prefix = share_prefix(self.decoder, input_ids.to(self.device), padded_behind=True)
        self.mode = ExecutionMode.BATCHED if self.prefix is None else ExecutionMode.SHARED_PREFIX
        return 0 if self.prefix is None else len(self.prefix)

    def seconds_per_token(self, batch: Batch) -> float | None:
        """Is not asked for: `data.max_tokens=auto` is refused for generation."""
        raise NotImplementedError

    def choose_matmuls(self, batch: Batch) -> None:
        """Packs the weights where that is faster, measured on a batch."""
        if self.speedups.tune == "auto":
            batch = to_device(batch, self.device)
            tokens = min(TOKENS_TO_MEASURE, self.decoding.max_new_tokens)
            self.matmuls = choose_matmuls(
                self.model,  # with its head, which each new token goes through
                lambda: self._scores(self.mode, batch, tokens=tokens),
                dtype=self.computed_in,
            )

    def choose_mode(self, probes: list[Batch]) -> None:
        """Takes the fastest execution mode whose scores agree with those of one row at a time, and may replay steps."""
        if self.speedups.probe == "off" or not probes:
            return
        batches = [to_device(batch, self.device) for batch in probes]
        self.mode, self.probe_errors = choose_mode(
            lambda mode: torch.cat([self._scores(mode, batch, tokens=2) for batch in batches]),
            first=self.mode,
            dtype=self.computed_in,
        )
        if self.speedups.tune == "auto" and self.device.type == "cuda":
            self.replay = self._probed_replay(batches)

    def compile(self, full_batch: Callable[[], Batch], *, batches: float) -> bool:
        """Compiles what packed weights have left to compile, where that was asked for; says whether it has."""
        if self.speedups.compile is True:
            batch = to_device(full_batch(), self.device)
            self.compile_seconds = compile_regions(self.decoder, lambda: self._scores(self.mode, batch, tokens=2))
        return self.compile_seconds is not None

    # --- one batch ---

    def _mode_of(self, length: torch.Tensor) -> ExecutionMode:
        """Returns how rows of these lengths, `[B]`, run together.

        Where one comes to a length behind which the model computes in another way, only rows that come to it at the
        same step do: the others would be computed so before they are as long.
        """
        last = length + self.decoding.max_new_tokens
        crosses = any(bool(((length <= boundary) & (last > boundary)).any()) for boundary in self.boundaries)
        return ExecutionMode.EQUAL_LENGTHS if crosses and self.mode is not ExecutionMode.ONE_BY_ONE else self.mode

    def _write(self, batch: Batch, part: slice, *, sampling: Sampling, attempt: int) -> torch.Tensor:
        """Generates for some rows of a batch, `[b, max_new_tokens]`."""
        decoding = self.decoding
        return write_answers(
            self.model,
            self._prompts(self.mode, batch, part, room=decoding.max_new_tokens),
            sampling=sampling,
            seeds=[row_seed(decoding.seed, attempt=attempt, row=row) for row in batch["index"][part].tolist()],
            end_token_ids=decoding.end_token_ids,
            max_new_tokens=decoding.max_new_tokens,
            replay=self.replay,
        )

    def _probed_replay(self, batches: list[Batch]) -> StepReplay | None:
        """Returns what replays decode steps, if they can be recorded and their scores are those of launched ones."""
        replay = StepReplay(self.model)

        def scores() -> torch.Tensor:
            return torch.cat([self._scores(self.mode, batch, tokens=TOKENS_TO_PROBE) for batch in batches])

        with replay:
            replayed = scores()
        if not replay.has_recorded:
            return None
        error = relative_error(replayed, scores())
        if error > tolerance_of(self.computed_in):
            log.info("decode steps are not replayed: their scores differ by %.2g", error)
            return None
        log.info("decode steps are replayed")
        return replay

    def _scores(self, mode: ExecutionMode, batch: Batch, *, tokens: int) -> torch.Tensor:
        """Returns the scores of the next tokens, `[B, tokens * V]`, whichever were the likeliest."""
        token = int(batch["input_ids"][0, -1])  # taken for each of them, in all modes
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=tokens, do_sample=False, use_cache=True, return_dict_in_generate=True, output_logits=True
        )

        def scores(part: slice) -> torch.Tensor:
            prompts = self._prompts(mode, batch, part, room=tokens)
            forced = LogitsProcessorList([_ForcedToken(token)])
            output = prompts.generate(self.model, config, logits_processor=forced)
            return torch.cat(output.logits, dim=1).float()

        with self.context():
            return torch.cat([scores(part) for part in parts_of_batch(mode, batch["length"])])

    def _prompts(self, mode: ExecutionMode, batch: Batch, part: slice, *, room: int) -> Prompts:
        """Returns some rows of a batch without the padding that none of them needs, with room for so many tokens."""
        prefix_length, length = batch["prefix_length"], batch["length"][part]
        width = int(length.max())
        padded = batch["input_ids"][part]
        input_ids = torch.cat([padded[:, :prefix_length], padded[:, padded.shape[1] - width + prefix_length :]], dim=1)
        mask = real_tokens(length, width=width, left_behind=prefix_length)
        shares = prefix_length > 0 and self.prefix is not None and mode is ExecutionMode.SHARED_PREFIX
        prefix = self.prefix.expand(len(length)) if shares and self.prefix is not None else None
        cache = preallocated_cache(self.model.config, room=width + room, prefix=prefix)
        return Prompts(input_ids, mask.long(), cache)


class _ForcedToken(LogitsProcessor):
    """Makes one token the next, whatever the scores are."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns scores `[B, V]` of which the token's is the largest."""
        forced: Any = torch.full_like(scores, -1.0)
        forced[:, self.token] = 1.0
        return forced  # type: ignore[no-any-return]
