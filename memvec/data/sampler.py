"""Plans the batches: which rows run together, on which rank, in which order.

In: the cost of every row in tokens. Out: for one rank, batches of row numbers, longest rows first.

How: rows are sorted by cost and dealt to the ranks so that each time the least loaded rank gets the next one (longest
processing time first; Graham 1969, https://doi.org/10.1137/0117039); then each rank cuts its own rows into batches of
at most `batch_size` rows and `max_tokens` padded tokens. Why rows are dealt and not batches: a rank's share is then
within one short row of every other's, where whole batches would leave a rank a batch ahead. Rows of equal cost are
dealt together, so ten million rows over a thousand ranks take a second. Everything is a pure function of its arguments:
every rank computes the same plan and nothing has to be sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

# A prefix that is less than a twentieth of a row saves less than its mask costs: rows without one take causal kernels.
LONGEST_IN_PREFIXES = 20


def rank_rows(costs: NDArray[np.integer], *, rank: int, world_size: int) -> Rows:
    """Returns the rows of one rank, dearest first; rows of equal cost stay in order.

    Args:
        costs: Tokens a row costs, `[N]`, each at least 1.
        rank: Which rank, from 0.
        world_size: How many ranks.

    Returns:
        Positions in `costs`, int64. Over all ranks every position comes exactly once.
    """
    order = np.argsort(-costs.astype(np.int64), kind="stable")
    if world_size == 1:
        return order
    values, counts = np.unique(costs, return_counts=True)
    loads = np.zeros(world_size, dtype=np.int64)
    mine: list[Rows] = []
    start = 0
    for cost, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        dealt = _deal(loads, cost, count)
        loads += dealt * cost
        first = start + int(dealt[:rank].sum())
        mine.append(order[first : first + int(dealt[rank])])
        start += count
    return np.concatenate(mine) if mine else order


def _deal(loads: NDArray[np.int64], cost: int, count: int) -> NDArray[np.int64]:
    """Deals `count` rows of equal cost, each to the rank with the least load at that moment, `[world_size]`.

    A rank takes rows as long as its load is below a level; the lowest level at which all rows are taken is found by
    bisection, which gives what dealing one by one gives.
    """

    def taken(level: int) -> NDArray[np.int64]:
        return np.maximum(0, -(-(level - loads) // cost))

    low, high = int(loads.min()), int(loads.min()) + cost * count  # none are taken at low, all by one rank at high
    while high - low > 1:
        middle = (low + high) // 2
        if int(taken(middle).sum()) >= count:
            high = middle
        else:
            low = middle
    dealt = taken(high)
    surplus = int(dealt.sum()) - count
    if surplus:  # several ranks took their last row at the same load: the highest ranks give theirs back
        last = np.flatnonzero(dealt > taken(high - 1))
        dealt[last[-surplus:]] -= 1
    return dealt


def cut_batches(costs: NDArray[np.integer], *, batch_size: int, max_tokens: int | None) -> Rows:
    """Cuts rows that are sorted by falling cost into batches.

    Args:
        costs: Tokens a row costs, `[N]`, not rising: the first row of a batch is its longest.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; a row that is longer alone is a batch of its own.
            None is no limit.

    Returns:
        `[batches + 1]` int64: batch b holds rows `result[b]` to `result[b + 1] - 1`.
    """
    boundaries = [0]
    while boundaries[-1] < len(costs):
        longest = int(costs[boundaries[-1]])
        rows = batch_size if max_tokens is None else min(batch_size, max(1, max_tokens // longest))
        boundaries.append(min(boundaries[-1] + rows, len(costs)))
    return np.asarray(boundaries, dtype=np.int64)


def best_prefix_length(shared: NDArray[np.int32]) -> int:
    """Returns the prefix length that spares most tokens: P tokens in every row that shares at least P.

    A text whose first character melts into the template's last token shares fewer tokens than the others; such rows run
    without the prefix instead of shortening it for all.

    Args:
        shared: Leading tokens each row has in common with the template, `[N]`.
    """
    if len(shared) == 0:
        return 0
    rows_with_at_least = np.bincount(shared)[::-1].cumsum()[::-1]  # [longest + 1]
    return int(np.argmax(rows_with_at_least * np.arange(len(rows_with_at_least))))


def rows_with_prefix(
    lengths: NDArray[np.integer], shared: NDArray[np.integer], prefix_length: int
) -> NDArray[np.bool_]:
    """Returns which rows are computed with the shared prefix's keys and values, `[N]` bool.

    Args:
        lengths: Tokens of each prompt, `[N]`.
        shared: Leading tokens each has in common with the template, `[N]`.
        prefix_length: P; 0 where the prefix is not shared at all.
    """
    worth_it: NDArray[np.bool_] = (shared >= prefix_length) & (lengths <= LONGEST_IN_PREFIXES * prefix_length)
    return worth_it


class LengthGroupedBatchSampler:
    """Yields this rank's batches as arrays of row numbers, longest rows first.

    Rows come in groups that must not share a batch (those that begin with the shared prefix and those that do not).

    This is a plain class without `batch_size` and `drop_last` attributes: Lightning tries to build anything that looks
    like `torch.utils.data.BatchSampler` anew, with arguments of its own, and fails. It yields arrays, not lists, since
    Lightning keeps every batch of indices for the whole run: a view costs 2 bytes a row, a list of integers 40.

    Args:
        groups: `(rows, costs)` pairs, both `[N]`: row numbers, and the tokens each costs.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; None is no limit.
        rank: This process's rank among those that share the rows.
        world_size: How many of them there are.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Rows, NDArray[np.integer]]],
        *,
        batch_size: int,
        max_tokens: int | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.max_tokens = max_tokens
        self.batches: list[Rows] = []
        self.total_tokens = 0
        self.padded_tokens = 0
        for rows, costs in groups:
            mine = rank_rows(costs, rank=rank, world_size=world_size)
            ordered_rows, ordered_costs = rows[mine], costs[mine].astype(np.int64)
            boundaries = cut_batches(ordered_costs, batch_size=batch_size, max_tokens=max_tokens)
            self.batches.extend(np.split(ordered_rows, boundaries[1:-1]) if len(mine) else [])
            self.total_tokens += int(ordered_costs.sum())
            self.padded_tokens += int((np.diff(boundaries) * ordered_costs[boundaries[:-1]]).sum()) if len(mine) else 0

    @property
    def rows(self) -> int:
        """How many rows this rank computes."""
        return sum(map(len, self.batches))

    @property
    def padding_share(self) -> float:
        """The share of the batches' tokens that is padding."""
        return 1 - self.total_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)
