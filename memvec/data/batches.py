"""The prompts that are left to compute, as padded batches: those of the plan, and some to measure and to probe on.

In: the tokenised dataset, and its rows in the groups that may share a batch. Out: a `Batch` for any rows of it.

Why apart from the plan: which rows run together is a question of lengths alone (`memvec.data.sampler`); what is
measured and probed before that needs real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from memvec.data.budget import typical_rows
from memvec.data.collator import Batch, PaddingCollator, TokenSource
from memvec.data.cutting import RowIndices
from memvec.data.grouping import best_prefix_length, group_rows, rows_with_prefix
from memvec.data.rules import BatchRules

# A sample of the rows is typical enough, and sorting ten million takes a second.
ROWS_TO_CHOOSE_FROM = 65_536


@dataclass(frozen=True)
class PromptTable:
    """The tokenised prompts of an input, and which of them are left to compute.

    Args:
        tokens: Where they lie.
        lengths: Tokens of every prompt, `[N]`.
        shared: Leading tokens that each has in common with the template's own, `[N]`, at most its length - 1.
        rows: Which are left, `[R]`.
        head_ids: The template's leading tokens, `[P]`.
    """

    tokens: TokenSource
    lengths: NDArray[np.int32]
    shared: NDArray[np.int32]
    rows: RowIndices
    head_ids: NDArray[np.int32]

    def common_tokens(self) -> torch.Tensor:
        """Returns the leading tokens that are worth computing once for all rows left, `[P]` int64; P may be 0."""
        return torch.from_numpy(self.head_ids[: best_prefix_length(self.shared[self.rows])].astype(np.int64))

    def batches(self, prefix_length: int, rules: BatchRules, *, boundaries: Sequence[int] = ()) -> PromptBatches:
        """Returns the rows left in the groups that may share a batch, and the tokens each costs.

        Args:
            prefix_length: Leading tokens that are computed once.
            rules: How rows become batches.
            boundaries: Lengths behind which the model computes in another way.
        """
        groups = group_rows(self.rows, self.lengths, self.shared, prefix_length=prefix_length, boundaries=boundaries)
        collate = PaddingCollator(
            prefix_rows=rows_with_prefix(self.lengths, self.shared, prefix_length, boundaries=boundaries),
            prefix_length=prefix_length,
            padding_side=rules.padding_side,
        )
        # The first group begins with the prefix.
        costs = [rules.row_tokens(self.lengths[rows], 0 if at else prefix_length) for at, rows in enumerate(groups)]
        return PromptBatches(self.tokens, list(zip(groups, costs, strict=True)), collate=collate)


class PromptBatches:
    """Makes batches of prompts.

    Args:
        tokens: Where the prompts lie.
        groups: `(rows, costs)` pairs, both `[N]`: rows that may share a batch, and the tokens each costs.
        collate: Pads rows.
    """

    def __init__(
        self,
        tokens: TokenSource,
        groups: Sequence[tuple[RowIndices, NDArray[np.integer]]],
        *,
        collate: PaddingCollator,
    ) -> None:
        self.tokens = tokens
        self.groups = groups
        self.collate = collate

    def of(self, rows: RowIndices) -> Batch:
        """Returns the batch of these rows."""
        return self.collate(self.tokens.__getitems__(rows))

    def input_ids(self, row: int) -> torch.Tensor:
        """Returns the tokens of one row's prompt, `[T]` int64."""
        return self.of(np.asarray([row]))["input_ids"][0]

    def typical(self, *, tokens: int) -> Batch | None:
        """Returns rows of typical length, about `tokens` tokens of them; None where there are no rows."""
        rows, costs = max(self.groups, key=lambda group: len(group[0]))
        if len(rows) == 0:
            return None
        every = 1 + len(rows) // ROWS_TO_CHOOSE_FROM
        return self.of(rows[::every][typical_rows(costs[::every], tokens=tokens)])

    def to_probe(self) -> list[Batch]:
        """Returns a few rows of each group, in batches as the run may have them.

        The shortest row is padded to the longest, more than any batch of the run pads it; and two rows of a middle
        length run side by side, of one length where there are such, for what runs without padding.
        """
        batches: list[RowIndices] = []
        for rows, costs in self.groups:
            order = np.argsort(costs, kind="stable")
            if len(rows) > 1:
                batches.append(rows[order[[-1, 0]]])
            if len(rows) != 2:  # one row, or what is between the shortest and the longest
                batches.append(rows[order[_middle_pair(costs[order])]])
        return [self.of(rows) for rows in batches if len(rows)]


def _middle_pair(costs: NDArray[np.integer]) -> slice:
    """Returns two neighbours near the middle of rising costs, where possible of one cost."""
    equal = np.flatnonzero(costs[1:] == costs[:-1])
    middle = len(costs) // 2
    first = int(equal[np.abs(equal - middle).argmin()]) if len(equal) else middle
    return slice(first, first + 2)
