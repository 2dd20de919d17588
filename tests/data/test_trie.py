"""Prompts as one sequence of tokens, what they begin with alike once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memvec.data.trie import build_trie

PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=9)


@given(prompts=PROMPTS)
@example(prompts=[[1, 2], [1, 2], [1], [1, 2, 3]])  # equal ones, and one that is the beginning of others
@example(prompts=[[0], [0, 0]])  # token 0 is not padding
def test_a_trie_holds_every_prompt_and_every_token_once(prompts: list[list[int]]) -> None:
    trie = build_trie(np.concatenate(prompts).astype(np.int32), np.asarray([len(prompt) for prompt in prompts]))

    beginnings = {tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))}
    assert len(trie.input_ids) == len(beginnings)
    spans = zip(trie.key_offsets[:-1].tolist(), trie.key_offsets[1:].tolist(), strict=True)
    rows = [trie.keys[start:end] for start, end in spans]
    assert [trie.input_ids[row].tolist() for row in rows] == sorted(prompts)
    assert all(trie.position_ids[row].tolist() == list(range(len(row))) for row in rows)
    assert trie.longest_key == max(map(len, prompts))


@given(prompts=PROMPTS)
def test_the_last_token_of_a_prompt_is_found_in_its_row(prompts: list[list[int]]) -> None:
    trie = build_trie(np.concatenate(prompts), np.asarray([len(prompt) for prompt in prompts]))
    ends = {tuple(trie.input_ids[row].tolist()): int(row[-1]) for row in _rows(trie.keys, trie.key_offsets)}
    assert trie.last.tolist() == [ends[tuple(prompt)] for prompt in prompts]


@given(prompts=PROMPTS)
def test_what_a_prompt_appends_stands_at_its_end(prompts: list[list[int]]) -> None:
    trie = build_trie(np.concatenate(prompts), np.asarray([len(prompt) for prompt in prompts]))
    appended = trie.query_offsets.diff().tolist()
    assert trie.longest_query == max(appended)
    for at, row in enumerate(_rows(trie.keys, trie.key_offsets)):
        own = list(range(int(trie.query_offsets[at]), int(trie.query_offsets[at + 1])))
        assert row[len(row) - appended[at] :].tolist() == own


@pytest.mark.parametrize("largest", [2**17, 2**31 - 1])
def test_prompts_are_sorted_by_tokens_of_any_size(largest: int) -> None:
    prompts = [[255, 3], [largest, 1], [256, 2], [1, largest]]
    trie = build_trie(np.concatenate(prompts), np.full(4, 2))
    assert [trie.input_ids[row].tolist() for row in _rows(trie.keys, trie.key_offsets)] == sorted(prompts)


def _rows(keys, offsets):  # type: ignore[no-untyped-def]
    return [keys[start:end] for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
