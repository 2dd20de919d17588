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
from memvec.data.rules import BatchRules
from memvec.data.sampler import RowIndices, best_prefix_length, rows_with_prefix

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

    def batches(self, prefix_length: int, rules: BatchRules) -> PromptBatches:
        """Returns the rows left in the groups that may share a batch, and the tokens each costs.

        Args:
            prefix_length: Leading tokens that are computed once.
            rules: How rows become batches.
        """
        begins = rows_with_prefix(self.lengths, self.shared, prefix_length)  # [N]
        with_prefix, without = self.rows[begins[self.rows]], self.rows[~begins[self.rows]]
        groups = [
            (with_prefix, rules.row_tokens(self.lengths[with_prefix], prefix_length)),
            (without, rules.row_tokens(self.lengths[without], 0)),
        ]
        collate = PaddingCollator(
            pad_token_id=0, prefix_rows=begins, prefix_length=prefix_length, padding_side=rules.padding_side
        )
        return PromptBatches(self.tokens, groups, lengths=self.lengths, collate=collate)


class PromptBatches:
    """Makes batches of prompts.

    Args:
        tokens: Where the prompts lie.
        groups: `(rows, costs)` pairs, both `[N]`: the rows that begin with the shared prefix, then the others, and the
            tokens each costs.
        lengths: Tokens of every prompt of the dataset.
        collate: Pads rows.
    """

    def __init__(
        self,
        tokens: TokenSource,
        groups: Sequence[tuple[RowIndices, NDArray[np.int32]]],
        *,
        lengths: NDArray[np.int32],
        collate: PaddingCollator,
    ) -> None:
        self.tokens = tokens
        self.groups = groups
        self.lengths = lengths
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
        """Returns the shortest, median and longest rows; two lengths share a batch, so that one is padded."""
        short, long = (rows[np.argsort(self.lengths[rows], kind="stable")] for rows, _ in self.groups)
        batches = [short[[0, len(short) // 2]]] if len(short) else []
        batches += [long[[0, len(long) // 2]]] if len(long) else []
        batches.append((long if len(long) else short)[-1:])  # alone: padding a short row to it would cost as much again
        return [self.of(np.unique(rows)) for rows in batches if len(rows)]
