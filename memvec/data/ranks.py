"""Which rank computes which rows: most expensive first, each to the rank with the least load so far.

In: the cost of every row in tokens. Out: the rows of a rank, or what every rank would compute, in numbers.

How: longest processing time first (Graham 1969, https://doi.org/10.1137/0117039). Why rows are dealt and not batches: a
rank's share is then within one short row of every other's, where whole batches would leave a rank a batch ahead. Rows
of equal cost are dealt together, so ten million rows over a thousand ranks take a second. Everything is a pure function
of its arguments: every rank computes the same plan and nothing has to be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memvec.data.cutting import SHORTEST_IN_BATCH, RowIndices, cut_batches, padded_tokens


def rank_rows(costs: NDArray[np.integer], *, rank: int, world_size: int) -> RowIndices:
    """Returns the rows of one rank, most expensive first; rows of equal cost stay in order.

    Args:
        costs: Tokens a row costs, `[N]`, each at least 1.
        rank: Which rank, from 0.
        world_size: How many ranks.

    Returns:
        Positions in `costs`, int64. Over all ranks every position comes exactly once.
    """
    if len(costs) == 0:
        return np.empty(0, dtype=np.int64)
    falling = costs.max() - costs
    # In the smallest integer type: up to 16 bits numpy sorts by counting, ten million rows in a tenth of a second.
    order = np.argsort(falling.astype(np.min_scalar_type(int(falling.max()))), kind="stable")
    if world_size == 1:
        return order
    _, dealt = deal_rows(costs, world_size=world_size)
    starts = np.concatenate([[0], dealt.sum(axis=1)[:-1]]).cumsum() + dealt[:, :rank].sum(axis=1)  # [V], in `order`
    return np.concatenate([order[at : at + count] for at, count in zip(starts, dealt[:, rank], strict=True)])


def deal_rows(costs: NDArray[np.integer], *, world_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deals the rows to the ranks, the most expensive first, each to the rank with the least load at that moment.

    Args:
        costs: Tokens a row costs, `[N]`, each at least 1.
        world_size: How many ranks.

    Returns:
        The V different costs, `[V]`, falling; and how many rows of each cost each rank takes, `[V, world_size]`.
    """
    counts = np.bincount(costs)
    values = np.flatnonzero(counts)[::-1]
    loads = np.zeros(world_size, dtype=np.int64)
    dealt = np.empty((len(values), world_size), dtype=np.int64)
    for position, cost in enumerate(values.tolist()):
        dealt[position] = _deal(loads, cost, int(counts[cost]))
        loads += dealt[position] * cost
    return values, dealt


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


@dataclass(frozen=True)
class RankPlan:
    """What one rank is to compute.

    Args:
        rows: Rows.
        batches: Batches.
        tokens: Tokens, shared prefix and padding not counted.
        padded_tokens: Tokens with padding, which is what takes time.
    """

    rows: int
    batches: int
    tokens: int
    padded_tokens: int


def plan_ranks(
    groups: Sequence[NDArray[np.integer]],
    *,
    batch_size: int,
    max_tokens: int | None,
    world_size: int,
    shortest_in_batch: float = SHORTEST_IN_BATCH,
    is_padded: bool = True,
) -> list[RankPlan]:
    """Returns what `LengthGroupedBatchSampler` gives every rank, in numbers, without holding anybody's rows.

    Args:
        groups: The costs of the rows of each group, `[N]`.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; None is no limit.
        world_size: How many ranks.
        shortest_in_batch: What the shortest row of a batch costs at least, as a share of its longest.
        is_padded: Whether rows are padded to the longest of their batch.
    """
    totals = np.zeros((world_size, 4), dtype=np.int64)
    for values, dealt in (deal_rows(costs, world_size=world_size) for costs in groups):
        for rank in range(world_size):
            costs = np.repeat(values, dealt[:, rank])
            boundaries = cut_batches(
                costs,
                batch_size=batch_size,
                max_tokens=max_tokens,
                shortest_in_batch=shortest_in_batch,
                is_padded=is_padded,
            )
            padded = padded_tokens(costs, boundaries, is_padded=is_padded)
            totals[rank] += (len(costs), len(boundaries) - 1, costs.sum(), padded)
    return [RankPlan(*row) for row in totals.tolist()]


def balance(loads: Sequence[int]) -> float:
    """Returns the largest load over the mean: 1 is even, 2 means that the run takes twice the time it could."""
    return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0
