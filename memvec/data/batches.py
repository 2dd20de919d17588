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
# The probe pads a row by at least so many tokens where there are such, and by more where that is a small part of all
# there is to compute: each of these tokens is computed three times.
TOKENS_TO_PROBE, SHARE_TO_PROBE = 128, 1 / 128


@dataclass(frozen=True)
class PromptTable:
    """The tokenised prompts of an input, and which of them are left to compute.

    Args:
        tokens: Where they lie.
        lengths: Tokens of every prompt, `[N]`.
        shared: Leading tokens that each has in common with the template's own, `[N]`, at most its length - 1.
        rows: Which are left, `[R]`.
    """

    tokens: TokenSource
    lengths: NDArray[np.int32]
    shared: NDArray[np.int32]
    rows: RowIndices

    def common_tokens(self) -> torch.Tensor:
        """Returns the leading tokens that are worth computing once for all rows left, `[P]` int64; P may be 0.

        They are those of a row, not of the template: a chat template that prints the date says another when it is asked
        again. All rows of a table are made at one time, so that those which share so many share the same.
        """
        shared = self.shared[self.rows]
        length = best_prefix_length(shared)
        having = self.rows[shared >= length][:1]
        read = self.tokens.__getitems__(having).input_ids[:length] if length > 0 else np.empty(0)
        return torch.from_numpy(np.asarray(read).astype(np.int64))

    def batches(
        self,
        prefix_length: int,
        rules: BatchRules,
        *,
        boundaries: Sequence[int] = (),
        windows: Sequence[int] = (),
    ) -> PromptBatches:
        """Returns the rows left in the groups that may share a batch, and the tokens each costs.

        Args:
            prefix_length: Leading tokens that are computed once.
            rules: How rows become batches.
            boundaries: Lengths behind which the model computes in another way.
            windows: Lengths behind which layers no longer see all tokens.
        """
        groups = group_rows(self.rows, self.lengths, self.shared, prefix_length=prefix_length, boundaries=boundaries)
        collate = PaddingCollator(
            prefix_rows=rows_with_prefix(self.lengths, self.shared, prefix_length, boundaries=boundaries),
            prefix_length=prefix_length,
            padding_side=rules.padding_side,
        )
        # The first group begins with the prefix.
        spared = [prefix_length] + [0] * (len(groups) - 1)
        costs = [rules.row_tokens(self.lengths[rows], less) for rows, less in zip(groups, spared, strict=True)]
        of_windows = [rules.row_tokens(np.asarray(windows, dtype=np.int32), less) for less in spared]
        return PromptBatches(self.tokens, list(zip(groups, costs, strict=True)), collate=collate, windows=of_windows)


class PromptBatches:
    """Makes batches of prompts.

    Args:
        tokens: Where the prompts lie.
        groups: `(rows, costs)` pairs, both `[N]`: rows that may share a batch, and the tokens each costs.
        collate: Pads rows.
        windows: What a row costs, in each group, behind which layers no longer see all of its tokens.
    """

    def __init__(
        self,
        tokens: TokenSource,
        groups: Sequence[tuple[RowIndices, NDArray[np.integer]]],
        *,
        collate: PaddingCollator,
        windows: Sequence[NDArray[np.integer]],
    ) -> None:
        self.tokens = tokens
        self.groups = groups
        self.collate = collate
        self.windows = windows

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

        The shortest row is padded to a long one, more than most batches of the run pad it; and two rows of one middle
        length, where there are such, run side by side, for what runs without padding.

        Rows without the prefix, where no window and no boundary makes another model of them, are left out if they are
        much of the work: they are computed as the reference is, but for padding, whose harm would show in the rows
        with the prefix.
        """
        batches: list[RowIndices] = []
        padding = max(TOKENS_TO_PROBE, int(sum(int(costs.sum()) for _, costs in self.groups) * SHARE_TO_PROBE))
        with_prefix = len(self.groups[0][0])
        for number, ((rows, costs), windows) in enumerate(zip(self.groups, self.windows, strict=True)):
            if len(rows) == 0:
                continue
            order = np.argsort(costs, kind="stable")
            rising = costs[order]
            last = _long_row(rising, windows, padding)
            # The second group has no prefix, and lies before the first boundary.
            is_plain = number == 1 and with_prefix > 1 and not (windows < rising[-1]).any()
            if is_plain and rising[0] + rising[last] > padding:
                continue
            batches.append(rows[order[[last, 0][: len(rows)]]])
            equal = np.flatnonzero(rising[1:] == rising[:-1])
            if len(equal) and len(rows) > 2:
                first = int(equal[np.abs(equal - last // 2).argmin()])
                batches.append(rows[order[first : first + 2]])
        return [self.of(rows) for rows in batches]


def _long_row(costs: NDArray[np.integer], windows: NDArray[np.integer], padding: int) -> int:
    """Returns the position, in rising costs, of the row that the shortest one is padded to.

    What is wrong with padding, positions or a shared prefix shows behind a few tokens as behind thousands, and a few
    texts of which one is long would be computed sooner than probed. So the longest row is taken only where it is a
    small part of the work, which catches even a length behind which a model changes and of which it says nothing. But
    a window that slides has not slid over a short row: a row well behind the last window that any is behind is taken.

    Args:
        costs: Tokens each row costs, `[N]`, N at least 1.
        windows: Rows that cost more are seen by some layers in part.
        padding: Tokens it is longer, at most, where there is such a row.
    """
    start = max([costs[0], *(window for window in windows if costs[0] < window < costs[-1])])
    last = int(np.searchsorted(costs, start + padding, side="right")) - 1
    if costs[last] > start:
        return last
    return min(int(np.searchsorted(costs, start, side="right")), len(costs) - 1)
