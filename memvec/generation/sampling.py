"""How the next token is chosen.

In: the scores of the next token for every row of a batch. Out: the scores of which the largest is taken.

Why a noise of each row's own and not the library's sampling: that draws for the whole batch from one generator, so what
a row gets depends on its neighbours, and a run that is stopped and resumed would write something else. Adding Gumbel
noise to the scores and taking the largest draws from exactly the distribution that the scores mean (Gumbel 1954;
Maddison et al., "A* Sampling", arXiv:1411.0030), and the noise of each token is seeded by its row and place alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from memvec.digest import digest


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: 0 takes the likeliest token; else scores are divided by it, and drawn from.
        top_p: Draw from the likeliest tokens that together have this probability.
        repetition_penalty: Scores of tokens that a row has written already are divided by it; 1 is none. The prompt's
            tokens, and the padding among them, do not count, as they would for the library's own penalty.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def processors(self, seeds: Sequence[int], *, width: int) -> LogitsProcessorList:
        """Returns what turns a model's scores into those of which the largest is taken.

        Args:
            seeds: `[B]`, each row's own; used where something is drawn.
            width: T, tokens of the prompts with their padding.
        """
        processors = LogitsProcessorList()
        if self.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty, prompt_ignore_length=width))
        if self.temperature > 0:
            processors.append(TemperatureLogitsWarper(self.temperature))
            if self.top_p < 1:
                processors.append(TopPLogitsWarper(self.top_p))
            processors.append(RowNoise(seeds, width=width))
        return processors


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise to the scores: what a row's token gets depends on the row's seed and the token's place alone.

    Args:
        seeds: `[B]`. From the same seed other kinds of devices draw other numbers.
        width: T, tokens of the prompts with their padding.
    """

    def __init__(self, seeds: Sequence[int], *, width: int) -> None:
        self.seeds = seeds
        self.width = width
        self._generator: torch.Generator | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns the scores `[B, V]` with noise."""
        self._generator = self._generator or torch.Generator(scores.device)
        draws = torch.empty_like(scores)
        for row, seed in zip(draws, self.seeds, strict=True):
            row.exponential_(generator=self._generator.manual_seed(seed + input_ids.shape[1] - self.width))
        noisy: Any = scores - draws.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return noisy  # type: ignore[no-any-return]


def row_seed(seed: int, *, attempt: int, row: int) -> int:
    """Returns a seed that only this row of this attempt has."""
    return int.from_bytes(digest(f"{seed}/{attempt}/{row}".encode())[:7])
