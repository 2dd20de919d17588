"""The batch sampler: this rank's batches as arrays of row numbers, longest rows first.

In: groups of rows that may share a batch (`memvec.data.grouping`), and the tokens each costs. Out: for one rank,
batches of row numbers: its rows (`memvec.data.ranks`), sorted by cost and cut by a token budget
(`memvec.data.cutting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from memvec.data.cutting import SHORTEST_IN_BATCH, RowIndices, cut_batches, padded_tokens
from memvec.data.ranks import rank_rows


class LengthGroupedBatchSampler:
    """Yields this rank's batches as arrays of row numbers, longest rows first.

    Rows come in groups that must not share a batch (`group_rows`).

    This is a plain class without `batch_size` and `drop_last` attributes: Lightning tries to build anything that looks
    like `torch.utils.data.BatchSampler` anew, with arguments of its own, and fails. It yields arrays, not lists, since
    Lightning keeps every batch of indices for the whole run: a view costs 2 bytes a row, a list of integers 40.

    Args:
        groups: `(rows, costs)` pairs, both `[N]`: row numbers, and the tokens each costs.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; None is no limit.
        rank: This process's rank among those that share the rows.
        world_size: How many of them there are.
        shortest_in_batch: What the shortest row of a batch costs at least, as a share of its longest.
        is_padded: Whether rows are padded to the longest of their batch.
        batches_in_step: How many batches to yield at least: where every rank must run equally many, a rank with fewer
            runs one row again and again, which is nobody's to write (`is_dummy`).
    """

    def __init__(
        self,
        groups: Sequence[tuple[RowIndices, NDArray[np.integer]]],
        *,
        batch_size: int,
        max_tokens: int | None,
        rank: int = 0,
        world_size: int = 1,
        shortest_in_batch: float = SHORTEST_IN_BATCH,
        is_padded: bool = True,
        batches_in_step: int = 0,
    ) -> None:
        self.max_tokens = max_tokens
        self.batches: list[RowIndices] = []
        self.total_tokens = 0
        self.padded_tokens = 0
        for rows, costs in groups:
            mine = rank_rows(costs, rank=rank, world_size=world_size)
            ordered_rows, ordered_costs = rows[mine], costs[mine].astype(np.int64)
            boundaries = cut_batches(
                ordered_costs,
                batch_size=batch_size,
                max_tokens=max_tokens,
                shortest_in_batch=shortest_in_batch,
                is_padded=is_padded,
            )
            self.batches.extend(np.split(ordered_rows, boundaries[1:-1]) if len(mine) else [])
            self.total_tokens += int(ordered_costs.sum())
            self.padded_tokens += padded_tokens(ordered_costs, boundaries, is_padded=is_padded)
        dummies = max(0, batches_in_step - len(self.batches))
        self._dummies = [_cheapest_row(groups)] * dummies if dummies else []

    @property
    def rows(self) -> int:
        """How many rows this rank computes."""
        return sum(map(len, self.batches))

    @property
    def padding_share(self) -> float:
        """The share of the batches' tokens that is padding."""
        return 1 - self.total_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def is_dummy(self, batch: int) -> bool:
        """Whether the batch at this position is run for the other ranks' sake only."""
        return batch >= len(self.batches)

    def __len__(self) -> int:
        return len(self.batches) + len(self._dummies)

    def __iter__(self) -> Iterator[RowIndices]:
        return chain(self.batches, self._dummies)


def _cheapest_row(groups: Sequence[tuple[RowIndices, NDArray[np.integer]]]) -> RowIndices:
    """Returns the row, `[1]`, that costs least."""
    rows, costs = min((group for group in groups if len(group[0])), key=lambda group: int(group[1].min()))
    return rows[[int(costs.argmin())]]
