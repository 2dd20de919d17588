"""The prompts that are left to compute, as padded batches: those of the plan, and some to measure and to probe on.

In: the tokenised dataset, and its rows in the groups that may share a batch. Out: a `Batch` for any rows of it.

Why apart from the plan: which rows run together is a question of lengths alone (`memvec.data.sampler`); what is
measured and probed before that needs real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from memvec.data.budget import typical_rows
from memvec.data.collator import Batch, PaddingCollator, PromptRows
from memvec.data.sampler import Rows

# A sample of the rows is typical enough, and sorting ten million takes a second.
ROWS_TO_CHOOSE_FROM = 65_536


class PromptBatches:
    """Makes batches of prompts.

    Args:
        prompts: With columns of `memvec.schema.PROMPT_FEATURES`.
        groups: `(rows, costs)` pairs, both `[N]`: the rows that begin with the shared prefix, then the others, and the
            tokens each costs.
        lengths: Tokens of every prompt of the dataset.
        collate: Pads rows.
    """

    def __init__(
        self,
        prompts: Dataset,
        groups: Sequence[tuple[Rows, NDArray[np.int32]]],
        *,
        lengths: NDArray[np.int32],
        collate: PaddingCollator,
    ) -> None:
        self.dataset = PromptRows(prompts)
        self.groups = groups
        self.lengths = lengths
        self.collate = collate

    def of(self, rows: Rows) -> Batch:
        """Returns the batch of these rows."""
        return self.collate(self.dataset.__getitems__(rows))

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
