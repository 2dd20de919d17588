"""The LightningModule of generation: a batch of prompts in, what the model writes to each out.

In: a left-padded `Batch` (`memvec.data.collator`). Out: `[B, G]` int64, the tokens written, -1 behind a row's end.

How: transformers' `generate` on the whole model, whose decoder is the same that `HiddenStateModule` computes vectors
with; so loading, the shared prefix, the choice of kernels and the probe before the fast path is trusted are that
class's. What is compared here is the scores of the next tokens. With padding on the left the shared prefix stands
before the padding; positions are counted without it, so attention over whole keys and values cannot tell. Sliding
windows can, since they count places, so a model with any runs without the shared prefix.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from memvec.config.values import at_least, number, one_of
from memvec.data.collator import Batch, real_tokens
from memvec.generation.cache import roomy_cache
from memvec.generation.decoding import Prompts, turn_end_ids, write_answers
from memvec.generation.outputs import ATTEMPTS
from memvec.generation.prompt import MemoryPrompt
from memvec.generation.sampling import Sampling, row_seed
from memvec.model.backbone import Backbone
from memvec.model.memory import compute_in_parts
from memvec.model.module import DTYPES, HiddenStateModule
from memvec.model.parity import Path

# Tokens written while kernels are timed: their steps then take about as long as the prompts before them.
TOKENS_TO_MEASURE = 8

log = logging.getLogger(__name__)


class GenerationModule(HiddenStateModule):
    """Writes an answer to each prompt.

    Args:
        name_or_path: Model folder, `.gguf` file, `gguf:<package>` or Hub name.
        prompt: What the model is asked.
        max_new_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token each time; else tokens are drawn, the more evenly the higher it is.
        top_p: Draw from the likeliest tokens that together have this probability.
        repetition_penalty: Divides the scores of tokens that an answer has already; 1 is none.
        attempts: 2 tries an answer that could not be understood once more; 1 does not.
        retry_temperature: The temperature of that second time, where it is higher than that of the first.
        seed: What is drawn depends on this, the row and the attempt, never on the batch.
        revision: Of a Hub model; None is its main branch.
        prefix_cache: As for `HiddenStateModule`, and so are the others.
        attn_implementation: transformers' name; None is the model's default.
        tune: Whether kernels are chosen by measuring.
        compile: Whether norms and feed-forward blocks are compiled.
        probe: Whether the fast path is compared with the plain one first.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled checkpoints are refused.

    Raises:
        ConfigError: An option does not make sense.
        ModelError: There is no such model.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        prompt: MemoryPrompt,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        attempts: int = ATTEMPTS,
        retry_temperature: float = 0.7,
        seed: int = 0,
        revision: str | None = None,
        prefix_cache: Literal["auto", "off"] = "auto",
        attn_implementation: str | None = None,
        tune: Literal["auto", "off"] = "auto",
        compile: bool = False,  # noqa: A002 - the field's name for it
        probe: Literal["auto", "off"] = "auto",
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
    ) -> None:
        super().__init__(
            name_or_path,
            revision=revision,
            prefix_cache=prefix_cache,
            attn_implementation=attn_implementation,
            tune=tune,
            compile=compile,
            probe=probe,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        self.prompt = prompt
        self.max_new_tokens = at_least("generation.max_new_tokens", max_new_tokens, 1)
        self.sampling = Sampling(
            temperature=number("generation.temperature", temperature, least=0.0),
            top_p=number("generation.top_p", top_p, least=0.0, most=1.0),
            repetition_penalty=number("generation.repetition_penalty", repetition_penalty, least=0.1),
        )
        self.attempts = one_of("generation.attempts", attempts, range(1, ATTEMPTS + 1))
        self.retry_temperature = number("generation.retry_temperature", retry_temperature, least=0.01)
        self.seed = at_least("generation.seed", seed, 0)
        self.language_model: PreTrainedModel | None = None
        self.end_token_ids: list[int] = []

    def fingerprint(self, *, precision: str) -> dict[str, Any]:
        """Returns what decides the answers to given tokens, for the run's fingerprint."""
        described = super().fingerprint(precision=precision)
        del described["layer"]  # all of them
        return {
            **described,
            "max_new_tokens": self.max_new_tokens,
            **asdict(self.sampling),
            "attempts": self.attempts,
            "retry_temperature": self.retry_temperature,
            "seed": self.seed,
        }

    def configure_model(self) -> None:
        """Loads the weights, in the dtype that `trainer.precision` stands for."""
        if self.language_model is not None:
            return
        dtype = DTYPES.get(str(self.trainer.precision), torch.float32)
        model: Any = self.checkpoint.load_language_model(dtype)
        known: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = set(known) if isinstance(known, list) else {known} - {None}
        self.end_token_ids = sorted(ends | turn_end_ids(self.checkpoint.load_tokenizer()))
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call] # its own temperature and penalties are not what was asked for
        # In this order: the backbone puts right what casting the whole model does to its float32 buffers.
        self.language_model = model
        self.backbone = Backbone(model.get_decoder()).eval()

    def share_prefix(self, input_ids: torch.Tensor) -> int:
        """Computes the prefix that prompts share, where that is wanted and valid; returns its tokens, or 0."""
        shared = super().share_prefix(input_ids)
        if self.prefix is not None and any(getattr(layer, "is_sliding", False) for layer in self.prefix.cache.layers):
            log.info("generating runs without it: sliding windows would count the padding behind it")
            self.prefix, self.path = None, Path.BATCHED
            return 0
        return shared

    def cache_bytes_per_token(self) -> int:
        """Returns the bytes of one token's keys and values, for attention over whole keys and values in all layers."""
        config: Any = self._language_model().config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self._language_model().dtype.itemsize)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> torch.Tensor:
        """Returns what is written to each row, `[B, max_new_tokens]` int64 with -1 behind its end.

        A row that does not fit into memory even alone has written nothing at all, and `rejections` says so.
        """

        def compute(part: slice) -> torch.Tensor:
            return self._write(self.path, batch, part)

        rows = len(batch["input_ids"])
        most = 1 if self.path is Path.ONE_BY_ONE else rows
        written, too_large = compute_in_parts(compute, rows=rows, most=most, dimension=self.max_new_tokens, missing=-1)
        for row in too_large:
            tokens = int(batch["length"][row])
            reason = f"out of memory: {tokens} tokens and {self.max_new_tokens} new ones do not fit even alone"
            self.rejections[int(batch["index"][row])] = reason
        return written

    def _write(self, path: Path, batch: Batch, part: slice) -> torch.Tensor:
        """Generates for some rows of a batch, `[b, max_new_tokens]`."""
        attempt: int = self.trainer.datamodule.attempt  # type: ignore[attr-defined]
        temperature = max(self.sampling.temperature, self.retry_temperature) if attempt else self.sampling.temperature
        rows = batch["index"][part].tolist()
        return write_answers(
            self._language_model(),
            self._prompts(path, batch, part, room=self.max_new_tokens),
            sampling=replace(self.sampling, temperature=temperature),
            seeds=[row_seed(self.seed, attempt=attempt, row=row) for row in rows],
            end_token_ids=self.end_token_ids,
            max_new_tokens=self.max_new_tokens,
        )

    def _vectors_along(self, path: Path, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        """Returns the scores of the next two tokens, `[B, 2V]`: what the probe judges by."""
        return self._scores(path, batch, tokens=2), []

    def _measured(self, batch: Batch) -> torch.Tensor:
        """Returns the scores of some more tokens: a run spends about as long on its steps as on its prompts."""
        with self.trainer.precision_plugin.predict_step_context():
            return self._scores(self.path, batch, tokens=min(TOKENS_TO_MEASURE, self.max_new_tokens))

    def _scores(self, path: Path, batch: Batch, *, tokens: int) -> torch.Tensor:
        """Returns the scores of the next tokens, `[B, tokens * V]`, whichever were the likeliest."""
        rows = len(batch["input_ids"])
        most = 1 if path is Path.ONE_BY_ONE else rows
        token = int(batch["input_ids"][0, -1])  # taken for each of them, along all paths
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )

        def scores(part: slice) -> torch.Tensor:
            prompts = self._prompts(path, batch, part, room=tokens)
            forced = LogitsProcessorList([_ForcedToken(token)])
            output = prompts.generate(self._language_model(), config, logits_processor=forced)
            return torch.cat(output.logits, dim=1).float()

        return torch.cat([scores(slice(start, min(start + most, rows))) for start in range(0, rows, most)])

    def _attentions_to_try(self) -> list[str]:
        """Returns the present one alone: a few rows do not tell what is fastest for many."""
        return [self.decoder.config._attn_implementation]

    def _model_to_tune(self) -> PreTrainedModel:
        return self._language_model()  # with its head, which each new token goes through

    def _prompts(self, path: Path, batch: Batch, part: slice, *, room: int) -> Prompts:
        """Returns some rows of a batch without the padding that none of them needs, with room for so many tokens."""
        prefix_length, length = batch["prefix_length"], batch["length"][part]
        width = int(length.max())
        padded = batch["input_ids"][part]
        input_ids = torch.cat([padded[:, :prefix_length], padded[:, padded.shape[1] - width + prefix_length :]], dim=1)
        mask = real_tokens(length, width=width, left_behind=prefix_length)
        shares = prefix_length > 0 and self.prefix is not None and path is Path.SHARED_PREFIX
        prefix = self.prefix.expand(len(length)) if shares and self.prefix is not None else None
        cache = roomy_cache(self._language_model().config, room=width + room, prefix=prefix)
        return Prompts(input_ids, mask.long(), cache)

    def _language_model(self) -> PreTrainedModel:
        if self.language_model is None:
            raise RuntimeError("configure_model has not run: use this module with a Lightning Trainer")
        return self.language_model


class _ForcedToken(LogitsProcessor):
    """Makes one token the next, whatever the scores are."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns scores `[B, V]` of which the token's is the largest."""
        forced: Any = torch.full_like(scores, -1.0)
        forced[:, self.token] = 1.0
        return forced  # type: ignore[no-any-return]
