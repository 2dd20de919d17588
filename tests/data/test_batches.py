"""The rows on which the fast ways are compared with the plain one are those that a run may get wrong."""

from __future__ import annotations

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
        head_ids=np.arange(1, shared + 1, dtype=np.int32),
    )


def probed(lengths: list[int], *, prefix_length: int = 0, boundaries: tuple[int, ...] = ()) -> list[list[int]]:
    batches = table_of(lengths).batches(prefix_length, BatchRules(), boundaries=boundaries)
    return [batch["length"].tolist() for batch in batches.to_probe()]


def test_the_shortest_row_is_padded_to_the_longest() -> None:
    assert probed([9, 4, 30, 8, 5, 7])[0] == [30, 4]


def test_two_rows_of_one_length_run_side_by_side() -> None:
    """What runs without padding is compared on them."""
    assert probed([9, 4, 30, 9, 5, 7])[1] == [9, 9]
    assert len(set(probed([9, 4, 30, 8, 5, 7])[1])) == 2  # where there are none of one length


@pytest.mark.parametrize(
    ("lengths", "expected"), [([], []), ([5], [[5]]), ([5, 7], [[7, 5]]), ([5, 7, 6], [[7, 5], [6, 7]])]
)
def test_few_rows_are_probed_all(lengths: list[int], expected: list[list[int]]) -> None:
    assert (probed(lengths) if lengths else []) == expected


def test_each_group_is_probed_by_itself() -> None:
    """A row is never padded over a boundary, in the run and in the probe."""
    found = probed([50, 4, 40, 9, 20, 17, 16, 60], prefix_length=2, boundaries=(16,))
    assert found == [[16, 4], [9, 16], [60, 17], [40, 50]]
