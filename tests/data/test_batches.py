"""The rows on which the fast ways are compared with the plain one are those that a run may get wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memvec.data.batches import PromptTable
from memvec.data.collator import PromptArrays
from memvec.data.rules import BatchRules


def table_of(lengths: list[int], *, shared: int = 2) -> PromptTable:
    """Returns prompts of these lengths that share their first tokens."""
    tokens = np.concatenate([np.arange(1, length + 1, dtype=np.int32) for length in lengths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return PromptTable(
        PromptArrays(tokens, offsets),
        lengths=np.array(lengths, dtype=np.int32),
        shared=np.minimum(shared, np.array(lengths, dtype=np.int32) - 1),
        rows=np.arange(len(lengths)),
    )


def probed(
    lengths: list[int], *, prefix_length: int = 0, boundaries: tuple[int, ...] = (), windows: tuple[int, ...] = ()
) -> list[list[int]]:
    batches = table_of(lengths).batches(prefix_length, BatchRules(), boundaries=boundaries, windows=windows)
    return [batch["length"].tolist() for batch in batches.to_probe()]


def test_the_tokens_in_common_are_those_of_a_row() -> None:
    """A chat template that prints the time begins in another way now than when the rows were made."""
    table = table_of([9, 4, 30], shared=3)
    assert table.common_tokens().tolist() == [1, 2, 3]
    melted = replace(table, shared=np.array([1, 3, 3], dtype=np.int32), rows=np.array([0, 2]))
    melted.tokens.__getitems__(np.array([0])).input_ids[:] = 9
    assert melted.common_tokens().tolist() == [1, 2, 3]
    assert replace(table, rows=np.array([], dtype=np.int64)).common_tokens().tolist() == []


def test_the_shortest_row_is_padded_to_the_longest() -> None:
    assert probed([9, 4, 30, 8, 5, 7])[0] == [30, 4]


def test_a_row_that_is_much_of_the_work_is_not_padded_to() -> None:
    assert probed([5, 100, 2_000])[0] == [100, 5]
    assert probed([5, 5, 2_000])[0] == [2_000, 5]  # where else nothing would be padded


def test_a_long_row_is_probed_among_many() -> None:
    assert probed([5, 2_000, *[100] * 3_000])[0] == [2_000, 5]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (8, [130, 5]),
        (200, [300, 5]),
        (1_000, [1_100, 5]),  # the window has slid by a hundred tokens
        (1_500, [2_000, 5]),
        (2_000, [130, 5]),  # no row is behind it
        (4, [130, 5]),  # every row is
    ],
)
def test_a_row_behind_a_window_is_probed(window: int, expected: list[int]) -> None:
    assert probed([5, 130, 300, 1_001, 1_100, 2_000], windows=(window,))[0] == expected


def test_a_window_counts_the_tokens_of_the_prefix() -> None:
    found = probed([22, 100, 302, 304, 380], prefix_length=20, windows=(303,))
    assert found[0] == [380, 22]
    assert probed([22, 100, 302, 303], prefix_length=20, windows=(303,))[0] == [100, 22]


def test_two_rows_of_one_length_run_side_by_side() -> None:
    """What runs without padding is compared on them."""
    assert probed([9, 4, 30, 9, 5, 7])[1:] == [[9, 9]]
    assert probed([9, 4, 30, 8, 5, 7])[1:] == []  # there are none of one length
    assert probed([6, 6, 9, 900, 5, 7, 8, 900])[1:] == [[6, 6]]  # as cheap as what else is probed
    assert probed([5, 900, 900])[1:] == [[900, 900]]


@pytest.mark.parametrize(
    ("lengths", "expected"), [([], []), ([5], [[5]]), ([5, 7], [[7, 5]]), ([7, 5, 7], [[7, 5], [7, 7]])]
)
def test_few_rows_are_probed_all(lengths: list[int], expected: list[list[int]]) -> None:
    assert (probed(lengths) if lengths else []) == expected


def test_each_group_is_probed_by_itself() -> None:
    """A row is never padded over a boundary, in the run and in the probe."""
    found = probed([50, 4, 40, 9, 20, 17, 16, 60], prefix_length=2, boundaries=(16,))
    assert found == [[16, 4], [60, 17]]


@pytest.mark.parametrize(
    ("plain", "more", "expected"),
    [
        ([500, 900], {}, [[30, 4]]),
        ([700], {}, [[30, 4]]),
        ([50, 70], {}, [[30, 4], [70, 50]]),
        ([500, *[900] * 250], {}, [[30, 4], [900, 500], [900, 900]]),  # a small part of the work
        ([500, 900], {"windows": (600,)}, [[30, 4], [900, 500]]),  # which slides over one of them
        ([500, 900], {"boundaries": (400,)}, [[30, 4], [900, 500]]),  # behind which positions are others
    ],
)
def test_long_rows_without_prefix_are_probed_where_they_differ(
    plain: list[int], more: dict[str, tuple[int, ...]], expected: list[list[int]]
) -> None:
    """A prefix of two tokens is not worth its mask in a row of more than forty."""
    assert probed([4, 9, 30, *plain], prefix_length=2, **more) == expected
