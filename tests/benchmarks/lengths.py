"""Synthetic memory texts whose prompts have lengths drawn from a seed, for machines that no data set reaches.

In: the name of a set. Out: texts. Only lengths matter to a model of random weights, so the words mean nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from tests.helpers.processes import WORDS


def _locomo(draw: random.Random) -> int:
    """About 33 tokens, as LoCoMo's observations have them."""
    return round(min(max(draw.gauss(33, 7), 20), 70))


def _mixed(draw: random.Random) -> int:
    """From 20 to 2,000 tokens, each order of magnitude as often as the other."""
    return round(math.exp(draw.uniform(math.log(20), math.log(2000))))


SETS: dict[str, Callable[[random.Random], int]] = {"locomo": _locomo, "mixed": _mixed}


def synthetic_texts(name: str, entries: int, tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    """Returns texts, the same at every call.

    Args:
        name: One of `SETS`.
        entries: How many.
        tokenizer: Counts the tokens.
        template: The prompt, with `{text}`, whose tokens count too.
    """
    draw = random.Random(0)
    words = [*WORDS, *(str(draw.randrange(10**6)) for _ in range(500))]
    tokens = [len(tokenizer(f" {word}")["input_ids"]) for word in words]
    frame = len(tokenizer(template.replace("{text}", ""))["input_ids"])
    texts = []
    for _ in range(entries):
        left, chosen = SETS[name](draw) - frame, []
        while left > 0 or not chosen:
            at = draw.randrange(len(words))
            chosen.append(words[at])
            left -= tokens[at]
        texts.append(" ".join(chosen))
    return texts
