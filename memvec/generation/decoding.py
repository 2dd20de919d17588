"""Writes an answer to every row of a batch with transformers' `generate`.

In: a model, left-padded prompts, how tokens are chosen. Out: the tokens of each answer.

How: prefill runs over a few rows of similar length at a time, since a processor's caches hold no more and padding costs
time, and all rows decode together, since a step costs little more for many. They decode in chunks of some tokens; after
each, finished rows leave the batch with their keys and values, so that a long answer does not make the short ones'
places cost as much as its own; where steps are replayed (`memvec.generation.replay`), once there are enough of them. A
row ends with one of the model's end tokens, in a repetition loop, or at its longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache

from memvec.data.collator import PADDING
from memvec.errors import ModelError
from memvec.generation.cache import PreallocatedLayer, has_room, lengthen, of_rows, put
from memvec.generation.replay import StepReplay
from memvec.generation.sampling import Sampling
from memvec.model.prefix import cache_argument
from memvec.model.transformers_internals import forget_rope_deltas
from memvec.prompt.template import fill_chat_template

# Short enough that few steps are run for rows that have ended, long enough that leaving costs little.
TOKENS_IN_A_CHUNK = 24
# Of prompts, on a CPU: more at once is slower (measured with SmolLM2-135M: 22 rows of 516 tokens by a quarter).
TOKENS_READ_AT_ONCE = 2048
# A model that has written the same so many tokens so many times will not stop by itself.
REPEATED_TOKENS = 24
REPEATS = 3
# Recording a step for fewer rows takes as long as two steps: rows leave once a quarter of them have finished.
MOST_STAYING_WHERE_REPLAYED = 0.75


@dataclass
class Prompts:
    """A batch of prompts.

    Args:
        input_ids: `[B, T]` int64, padded on the left, or behind a prefix that the cache holds.
        attention_mask: `[B, T]` int64, 1 for tokens and 0 for padding.
        cache: Keys and values of the first tokens, which are not computed again, and room for others; or None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: Cache | None

    def generate(self, model: Any, config: GenerationConfig, **how: Any) -> Any:
        """Calls the model's `generate`."""
        forget_rope_deltas(model)
        return model.generate(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            generation_config=config,
            **{cache_argument(model): self.cache},
            **how,
        )


def write_answers(
    model: PreTrainedModel,
    prompts: Prompts,
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    end_token_ids: Sequence[int],
    max_new_tokens: int,
    replay: StepReplay | None = None,
) -> torch.Tensor:
    """Returns what the model writes to each prompt, `[B, max_new_tokens]` int64 with -1 behind a row's end.

    Args:
        model: The whole model.
        prompts: B of them; their tensors and cache are used up.
        sampling: How tokens are chosen.
        seeds: `[B]`, each row's own, for where tokens are drawn.
        end_token_ids: An answer ends with the first of these, which belongs to it.
        max_new_tokens: Most tokens of an answer.
        replay: Records and replays decode steps; None launches each.
    """
    width, device = prompts.input_ids.shape[1], prompts.input_ids.device
    answers = torch.full((len(prompts.input_ids), max_new_tokens), -1, device=device)
    rows = torch.arange(len(answers), device=device)  # which answers the batch's rows are
    length = torch.full_like(rows, max_new_tokens + 1)  # of their answers; more than there can be while unfinished
    most_staying = 1 if replay is None else MOST_STAYING_WHERE_REPLAYED
    with replay or nullcontext():
        while len(rows) > 0:
            written = prompts.input_ids.shape[1] - width
            prompts, stopped_at = _decode(
                model,
                prompts,
                written=written,
                left=max_new_tokens - written,
                sampling=sampling,
                seeds=[seeds[row] for row in rows.tolist()],
                end_token_ids=end_token_ids,
                has_ended=length <= max_new_tokens,
            )
            tokens = prompts.input_ids[:, width:]  # [b, written + new]
            found = _answer_length(tokens, end_token_ids, stopped_at, unfinished=max_new_tokens + 1)
            length = length.minimum(found)  # what a row that stays writes behind its end does not count
            positions = torch.arange(tokens.shape[1], device=device)
            answers[rows, : tokens.shape[1]] = tokens.masked_fill(positions >= length[:, None], -1)
            staying = (length > max_new_tokens).nonzero()[:, 0]
            if len(staying) == 0 or tokens.shape[1] >= max_new_tokens:
                break
            if len(staying) > most_staying * len(rows):
                staying = torch.arange(len(rows), device=device)
            rows, length = rows[staying], length[staying]
            prompts = _keep(prompts, staying)
    return answers


def _decode(
    model: PreTrainedModel,
    prompts: Prompts,
    *,
    written: int,
    left: int,
    sampling: Sampling,
    seeds: Sequence[int],
    end_token_ids: Sequence[int],
    has_ended: torch.Tensor,
) -> tuple[Prompts, torch.Tensor]:
    """Writes the next tokens of every row, a chunk of them.

    Args:
        model: The whole model.
        prompts: With the tokens that are written already.
        written: How many these are.
        left: How many there may be yet.
        sampling: How tokens are chosen.
        seeds: `[b]`, each row's own.
        end_token_ids: What ends a row.
        has_ended: `[b]`, which rows stay though their answers have ended: the chunk does not wait for them.

    Returns:
        The prompts with the new tokens, and how many tokens a row had written when it began to repeat itself, `[b]`; 0
        where it did not.
    """
    width = prompts.input_ids.shape[1]
    parts = _prefill_parts(prompts) if written == 0 else [slice(None)]
    chunk = min(TOKENS_IN_A_CHUNK, left) if _can_leave(prompts.cache) else left
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=1 if len(parts) > 1 else chunk,  # the first token comes with prefill
        do_sample=False,  # the processors draw, where anything is to be drawn
        eos_token_id=list(end_token_ids) or None,
        pad_token_id=PADDING,
        return_dict_in_generate=True,
        use_cache=True,  # many checkpoints say false, from their training
    )
    new, stopped_at = [], []
    for part in parts:
        prompts_of_part = prompts if len(parts) == 1 else _part(prompts, part)
        read = prompts_of_part.input_ids.shape[1]
        repetition = RepetitionStop(width=read - written, has_ended=has_ended[part])
        output = prompts_of_part.generate(
            model,
            config,
            logits_processor=sampling.processors(seeds[part], width=read - written),
            stopping_criteria=StoppingCriteriaList([repetition]),
        )
        new.append(output.sequences[:, read:])
        stopped_at.append(repetition.stopped_at)
        if prompts.cache is not None and prompts_of_part.cache is not None and len(parts) > 1:
            put(prompts.cache, part, prompts_of_part.cache, length=width)
    if prompts.cache is not None and len(parts) > 1:
        lengthen(prompts.cache, width)
    input_ids = torch.cat([prompts.input_ids, torch.cat(new)], dim=1)
    return replace(prompts, input_ids=input_ids), torch.cat(stopped_at)


def _can_leave(cache: Cache | None) -> bool:
    """Whether rows can leave a batch: whether all that is kept of them is known to be keys and values."""
    return cache is not None and any(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


def _prefill_parts(prompts: Prompts) -> list[slice]:
    """Returns the rows whose prompts to read together.

    All at once where their keys and values could not be put together, and on a GPU, which has the most to do then.
    """
    cache, length = prompts.cache, prompts.attention_mask.sum(dim=1)
    if cache is None or not has_room(cache) or prompts.input_ids.device.type != "cpu":
        return [slice(None)]
    parts = []
    start = 0
    while start < len(length):
        longest = max(1, int(length[start]) - cache.get_seq_length())  # in a plan's batches the longest stand first
        parts.append(slice(start, start + max(1, TOKENS_READ_AT_ONCE // longest)))
        start = parts[-1].stop
    return parts


def _part(prompts: Prompts, rows: slice) -> Prompts:
    """Returns the prompts of some rows with no padding that none of them needs, and a cache of their own."""
    mask, width = prompts.attention_mask[rows], prompts.input_ids.shape[1]
    prefix = prompts.cache.get_seq_length() if prompts.cache is not None else 0
    padding = width - int(mask.sum(dim=1).max())
    kept = torch.cat([torch.arange(prefix), torch.arange(prefix + padding, width)])
    cache = of_rows(prompts.cache, rows, room=len(kept)) if prompts.cache is not None else None
    return Prompts(prompts.input_ids[rows, kept], mask[:, kept], cache)


def _keep(prompts: Prompts, staying: torch.Tensor) -> Prompts:
    """Returns the prompts of the rows that stay, with what they have written."""
    new = prompts.input_ids.shape[1] - prompts.attention_mask.shape[1]
    mask = torch.nn.functional.pad(prompts.attention_mask, (0, new), value=1)
    if prompts.cache is not None and len(staying) < len(mask):
        prompts.cache.batch_select_indices(staying)
    return Prompts(prompts.input_ids[staying], mask[staying], prompts.cache)


class RepetitionStop(StoppingCriteria):
    """Ends a row in a repetition loop: its last `REPEATED_TOKENS` tokens stand there `REPEATS` times.

    Args:
        width: T, tokens of the prompts with their padding.
        has_ended: `[B]`, rows that have ended before.
    """

    def __init__(self, *, width: int, has_ended: torch.Tensor) -> None:
        self.width = width
        self.has_ended = has_ended
        self.stopped_at = torch.zeros_like(has_ended, dtype=torch.long)  # tokens written; 0 while it is unfinished

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Returns which rows are to end, `[B]`."""
        written = input_ids[:, self.width :]
        ends: Any = self.has_ended
        if written.shape[1] > REPEATED_TOKENS:
            pieces = written.unfold(1, REPEATED_TOKENS, 1)  # [B, G - n + 1, n]
            repeats = (pieces == pieces[:, -1:]).all(dim=2).sum(dim=1) >= REPEATS
            self.stopped_at[repeats & (self.stopped_at == 0)] = written.shape[1]
            ends = ends | repeats
        return ends  # type: ignore[no-any-return]


def _answer_length(
    tokens: torch.Tensor, end_token_ids: Sequence[int], stopped_at: torch.Tensor, *, unfinished: int
) -> torch.Tensor:
    """Returns the tokens of each answer, its end counted, `[B]`.

    Args:
        tokens: `[B, G]`, written; a row that has ended is filled up.
        end_token_ids: What ends a row.
        stopped_at: How many tokens a row had written when something else ended it, `[B]`; 0 where nothing did.
        unfinished: What is returned where an answer has not ended.
    """
    is_end = torch.isin(tokens, torch.tensor(end_token_ids, device=tokens.device, dtype=tokens.dtype))
    length = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, unfinished)
    return torch.where(stopped_at > 0, length.minimum(stopped_at), length)


def turn_end_ids(tokenizer: PreTrainedTokenizerFast, *, options: Mapping[str, Any] | None = None) -> set[int]:
    """Returns the tokens that end an answer: the tokenizer's own end, and what its chat template writes behind one.

    Args:
        tokenizer: The model's.
        options: What its chat template is given besides the chat.
    """
    ends = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    answer = "memvec"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        filled = fill_chat_template(tokenizer, chat, keeps=answer, add_generation_prompt=False, options=options or {})
    except ModelError:  # it may want the user to speak last, which a prompt does
        return ends
    ids = tokenizer(filled.rpartition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
    # A token of its own, beside the vocabulary of the texts: not all that end a turn are flagged or named as special.
    return ends | ({ids[0]} & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} if ids else set())
