"""The LightningModule of generation: a batch of prompts in, what the model writes to each out.

In: a left-padded `Batch` (`memvec.data.collator`). Out: `[B, G]` int64, the tokens written, -1 behind a row's end.

How: weights are loaded in `configure_model`, as those of `memvec.model.module` are; the data module calls `warm_up`
when it knows the rows; from then on a `Generator` computes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from transformers import GenerationConfig, PreTrainedModel

from memvec.config.values import at_least, number, one_of, one_text_or_none
from memvec.data.batches import PromptTable
from memvec.data.collator import Batch
from memvec.data.datamodule import datamodule_of, is_anything_left
from memvec.data.plan import BatchPlan, Ranks
from memvec.data.rules import BatchRules
from memvec.generation.completions import ATTEMPTS
from memvec.generation.decoding import turn_end_ids
from memvec.generation.generator import Decoding, Generator
from memvec.generation.prompt import MemoryPrompt
from memvec.generation.sampling import Sampling
from memvec.model.casting import LoadedModel
from memvec.model.checkpoint import Checkpoint, locate_model
from memvec.model.lockstep import WeightGroup
from memvec.model.module import computing_dtype, model_fingerprint, weights_dtype
from memvec.model.speedups import Speedups
from memvec.model.warm_up import warm_up, warm_up_notes
from memvec.model.widening import widen_where_slow


class GenerationModule(pl.LightningModule):
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
        adapter: Folder or Hub name of a LoRA adapter that is merged into the weights.
        prefix_cache: As for `memvec.model.module.HiddenStateModule`, and so are the others.
        attn_implementation: transformers' name; None is the model's default.
        tune: `auto` packs weights where a measurement says that it pays.
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
        adapter: str | None = None,
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
            adapter=one_text_or_none("generation.adapter", adapter),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        self.speedups = Speedups(prefix_cache, tune, compile, probe)
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
        self.loaded: LoadedModel | None = None
        self.generator: Generator | None = None
        self.keeps_weights = False  # for what computes with them after this
        self.end_token_ids: list[int] = []

    @property
    def decoder(self) -> PreTrainedModel:
        """What every batch goes through, without the language-model head."""
        return self.engine.decoder

    @property
    def engine(self) -> Generator:
        """What computes; `warm_up` has run."""
        if self.generator is None:
            raise RuntimeError("warm_up has not run: use this module with a Lightning Trainer and memvec's data module")
        return self.generator

    @property
    def group(self) -> WeightGroup:
        """Each process holds its own weights."""
        return WeightGroup()

    def fingerprint(self, *, precision: str) -> dict[str, Any]:
        """Returns what decides the answers to given tokens, for the run's fingerprint."""
        return {
            **model_fingerprint(self.checkpoint, precision=precision),
            "max_new_tokens": self.max_new_tokens,
            **asdict(self.sampling),
            "attempts": self.attempts,
            "retry_temperature": self.retry_temperature,
            "seed": self.seed,
        }

    def configure_model(self) -> None:
        """Loads the weights, in the dtype that `trainer.precision` stands for."""
        if self.loaded is not None or not is_anything_left(self.trainer):
            return
        dtype = weights_dtype(str(self.trainer.precision))
        model: Any = self.checkpoint.load_language_model(dtype)
        known: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = {end for end in (known if isinstance(known, list) else [known]) if isinstance(end, int) and end >= 0}
        options = self.prompt.chat_template_kwargs
        self.end_token_ids = sorted(ends | turn_end_ids(self.checkpoint.load_tokenizer(), options=options))
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call] # its own temperature and penalties are not what was asked for
        self.loaded = LoadedModel(model, dtype).eval()

    def warm_up(self, table: PromptTable, rules: BatchRules, ranks: Ranks) -> BatchPlan:
        """Makes the generator ready for the rows of a table, and plans this rank's batches."""
        if self.loaded is None:
            raise RuntimeError("configure_model has not run: use this module with a Lightning Trainer")
        if self.speedups.tune == "auto":
            widen_where_slow(self.loaded.model, processes=self.trainer.num_devices)
        self.generator = Generator(
            self.loaded.model,
            decoding=Decoding(self.sampling, self.end_token_ids, self.max_new_tokens, self.seed),
            speedups=self.speedups,
            computed_in=computing_dtype(str(self.trainer.precision), self.loaded.model.dtype),
            context=self.trainer.precision_plugin.predict_step_context,
        )
        return warm_up(self.generator, table, rules, ranks=ranks)

    def on_predict_end(self) -> None:
        """Frees the weights, as `memvec.model.module` does, unless another stage or attempt wants them.

        From a GPU they are freed before another attempt too: loading them takes no longer than copying them twice.
        """
        self.generator = None
        may_follow = datamodule_of(self.trainer).attempt + 1 < self.attempts and self.device.type == "cpu"
        if not self.keeps_weights and not may_follow:
            self.loaded = None

    def has_own_batches_in_step(self) -> bool:
        """No process waits for another."""
        return False

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> torch.Tensor:
        """Returns what is written to each row, `[B, max_new_tokens]` int64 with -1 behind its end."""
        attempt = datamodule_of(self.trainer).attempt
        retry = max(self.sampling.temperature, self.retry_temperature) if attempt else None
        return self.engine(batch, attempt=attempt, temperature=retry)

    def notes(self) -> dict[str, Any]:
        """Returns what was found out while running, for the manifest."""
        replay = self.generator.replay if self.generator is not None else None
        replays = replay is not None and replay.has_recorded
        return {**warm_up_notes(self.generator), "decode_steps": "replayed" if replays else "launched"}
