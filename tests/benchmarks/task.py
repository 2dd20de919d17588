"""What all contestants are given, and how many tokens it takes at least.

In: texts, a model and the settings all share. Out: a `Task`; its `Work`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from memvec.config.compose import compose
from memvec.model.limits import prompt_limit

DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16}


@dataclass(frozen=True)
class Task:
    """What all contestants are given.

    Args:
        texts: N texts.
        subset: Rows of `texts`, rising, that the slow reference computes and the vectors are compared on.
        model: Model folder or Hub name.
        precision: As `trainer.precision`.
        device: `cpu` or `cuda`.
        threads: Of the processor.
        scratch: A folder for files of this run.
        overrides: More of memvec's configuration.
    """

    texts: Sequence[str]
    subset: Sequence[int]
    model: str
    precision: str
    device: str
    threads: int
    scratch: Path
    overrides: Sequence[str] = field(default_factory=tuple)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and computation."""
        return DTYPES[self.precision]

    @cached_property
    def template(self) -> str:
        """memvec's default prompt, with `{text}`."""
        return str(compose().prompt.template)

    def prompts(self, texts: Sequence[str]) -> list[str]:
        """Returns the prompts of `texts`."""
        return [self.template.replace("{text}", text) for text in texts]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the model's tokenizer, which can pad."""
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(self.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


@dataclass(frozen=True)
class Work:
    """How much there is to do.

    Args:
        lengths: Tokens of each prompt, `[N]`.
        unique: How many prompts differ.
        shared_prefix: Tokens with which all prompts begin.
        fewest_tokens: What must be computed: different prompts' tokens, their shared prefix once.
        pairs: Of these, those that see each other.
        parameters: Of the model without the embedding and the head: 2 floating-point operations each per token.
        attention_width: Layers x heads x numbers of a head: 4 floating-point operations each per pair of tokens that
            causality lets see each other (scores, and the sum of values).
    """

    lengths: Sequence[int]
    unique: int
    shared_prefix: int
    fewest_tokens: int
    pairs: int
    parameters: int
    attention_width: int

    @property
    def tokens(self) -> int:
        """All prompts' tokens, without padding."""
        return sum(self.lengths)

    @property
    def flop(self) -> float:
        """The floating-point operations that must be done: those of the weights, and of attention."""
        return 2.0 * self.parameters * self.fewest_tokens + 4.0 * self.attention_width * self.pairs


def measure_work(task: Task) -> Work:
    """Counts the task's tokens and the model's parameters."""
    prompts = [tuple(ids) for ids in task.tokenizer()(task.prompts(task.texts))["input_ids"]]
    unique = set(prompts)
    first, last = min(unique), max(unique)  # what these two share, all share
    prefix = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return Work(
        lengths=[len(ids) for ids in prompts],
        unique=len(unique),
        shared_prefix=prefix,
        fewest_tokens=sum(map(len, unique)) - prefix * (len(unique) - 1),
        pairs=sum(map(_pairs, map(len, unique))) - _pairs(prefix) * (len(unique) - 1),
        parameters=sum(weight.numel() for weight in _layer_weights(task.model)),
        attention_width=_attention_width(task.model),
    )


def _pairs(length: int) -> int:
    """Returns how many pairs of tokens of a prompt see each other."""
    return length * (length + 1) // 2


def _attention_width(model: str) -> int:
    config = AutoConfig.from_pretrained(model).get_text_config()
    heads: int = config.num_attention_heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(config.num_hidden_layers) * heads * size


def texts_that_fit(task: Task) -> list[str]:
    """Returns the texts whose prompts are not longer than the model's limit."""
    limit = prompt_limit(AutoConfig.from_pretrained(task.model)) or sys.maxsize
    prompts = task.tokenizer()(task.prompts(task.texts))["input_ids"]
    return [text for text, ids in zip(task.texts, prompts, strict=True) if len(ids) <= limit]


def product_shapes(model: str) -> list[tuple[int, int]]:
    """Returns the different `(outputs, inputs)` of the model's matmuls."""
    return sorted({(weight.shape[0], weight.shape[1]) for weight in _layer_weights(model) if weight.dim() == 2})


def evenly_spaced(rows: int, most: int) -> list[int]:
    """Returns at most `most` of the numbers below `rows`, so that a file's order does not decide which."""
    count = min(rows, most)
    return [at * rows // count for at in range(count)]


def quiet_libraries() -> None:
    """Keeps transformers' loading reports off the table."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _layer_weights(model: str) -> list[torch.Tensor]:
    with torch.device("meta"):
        backbone = AutoModel.from_config(AutoConfig.from_pretrained(model))
    embedding = backbone.get_input_embeddings().weight
    return [weight for weight in backbone.parameters() if weight is not embedding]
