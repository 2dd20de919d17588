"""How the next token is chosen, and when a row has written enough.

In: the scores of the next token for every row of a batch. Out: the scores its choice is made by; whether a row is done.

Why a noise of each row's own and not the library's sampling: that draws for the whole batch from one generator, so what
a row gets depends on its neighbours, and a run that was stopped and goes on would write something else. Adding Gumbel
noise to the scores and taking the largest draws from exactly the distribution that the scores mean (Gumbel 1954;
Maddison et al., "A* Sampling", arXiv:1411.0030), and the noise comes from a generator seeded by the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from memvec.data.digest import digest

# A model that has written the same so many tokens so many times will not stop by itself.
REPEATED_TOKENS = 24
REPEATS = 3


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise to the scores, from a generator a row.

    Args:
        seeds: `[B]`, each row's own.
        device: Where the scores are; other devices draw other numbers from the same seed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns the scores `[B, V]` with noise."""
        draws = torch.empty_like(scores)
        for row, generator in zip(draws, self.generators, strict=True):
            row.exponential_(generator=generator)
        noisy: Any = scores - draws.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return noisy  # type: ignore[no-any-return]


def row_seed(seed: int, *, attempt: int, row: int) -> int:
    """Returns a seed that only this row of this attempt has."""
    return int.from_bytes(digest(f"{seed}/{attempt}/{row}".encode())[:7])


def score_processors(
    *, seeds: Sequence[int], width: int, device: torch.device, temperature: float, top_p: float, penalty: float
) -> LogitsProcessorList:
    """Returns what turns a model's scores into those the next token is chosen by: the largest is taken.

    Args:
        seeds: `[B]`, each row's own; used where something is drawn.
        width: T, tokens of the prompts with their padding.
        device: Where the scores are.
        temperature: 0 takes the likeliest token; else scores are divided by it, and drawn from.
        top_p: Draw from the likeliest tokens that together have this probability.
        penalty: Scores of tokens that a row has written already are divided by it; 1 is none. The prompt's tokens, and
            the padding among them, are not counted, as the library's own penalty would.
    """
    processors = LogitsProcessorList()
    if penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=width))
    if temperature > 0:
        processors.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
        processors.append(RowNoise(seeds, device))
    return processors


class RepetitionStop(StoppingCriteria):
    """Ends a row that goes round in circles: its last `REPEATED_TOKENS` tokens stand there `REPEATS` times.

    Args:
        width: T, tokens of the prompts with their padding.
        rows: B.
        device: Where the tokens are.
    """

    def __init__(self, *, width: int, rows: int, device: torch.device) -> None:
        self.width = width
        self.stopped_at = torch.zeros(rows, dtype=torch.long, device=device)  # tokens written; 0 where it was not ended

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Returns which rows are to end, `[B]`."""
        written = input_ids[:, self.width :]
        ends: Any = torch.zeros(len(written), dtype=torch.bool, device=written.device)
        if written.shape[1] > REPEATED_TOKENS:
            pieces = written.unfold(1, REPEATED_TOKENS, 1)  # [B, G - n + 1, n]
            ends = (pieces == pieces[:, -1:]).all(dim=2).sum(dim=1) >= REPEATS
            self.stopped_at[ends & (self.stopped_at == 0)] = written.shape[1]
        return ends  # type: ignore[no-any-return]


def written_tokens(
    sequences: torch.Tensor, *, width: int, end_token_ids: Sequence[int], stop: RepetitionStop, room: int
) -> torch.Tensor:
    """Returns what each row has written, `[B, room]` int64, with -1 behind its end.

    Args:
        sequences: `[B, T + G]`, as `generate` returns them: a row that is done is filled up.
        width: T.
        end_token_ids: A row ends with the first of these, which belongs to it.
        stop: What else may have ended it.
        room: Most tokens a row may write.
    """
    written = sequences[:, width:]
    positions = torch.arange(written.shape[1], device=written.device)
    is_end = torch.isin(written, torch.tensor(end_token_ids, device=written.device))
    length = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, written.shape[1])  # [B]
    length = torch.where(stop.stopped_at > 0, length.minimum(stop.stopped_at), length)
    written = written.masked_fill(positions >= length[:, None], -1)
    return torch.nn.functional.pad(written, (0, room - written.shape[1]), value=-1)


def turn_end_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Returns the tokens that end an answer: the tokenizer's own end, and what its chat template writes behind one."""
    ends = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    answer = "memvec"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    behind = str(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition(answer)[2]
    ids = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"]
    return ends | ({ids[0]} & set(tokenizer.all_special_ids) if ids else set())
