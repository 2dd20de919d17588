"""Plans the batches: which rows run together, on which rank, in which order.

In: the cost of every row in tokens. Out: for one rank, batches of row numbers, longest rows first.

How: rows are sorted by cost and dealt to the ranks so that each time the least loaded rank gets the next one (longest
processing time first; Graham 1969, https://doi.org/10.1137/0117039); then each rank cuts its own rows into batches of
at most `batch_size` rows and `max_tokens` padded tokens, whose lengths are not too far apart. Why rows are dealt and
not batches: a rank's share is then within one short row of every other's, where whole batches would leave a rank a
batch ahead. Rows of equal cost are dealt together, so ten million rows over a thousand ranks take a second. Everything
is a pure function of its arguments: every rank computes the same plan and nothing has to be sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

RowIndices = NDArray[np.int64]

# The shortest row of a batch, as a share of its longest: where few rows meet a large budget, a batch would otherwise
# hold more padding than tokens, and ranks with one row of the long tail more than others would work for longer.
SHORTEST_IN_BATCH = 0.75
# A prefix that is less than a twentieth of a row saves less than its mask costs: rows without one take causal kernels.
LONGEST_IN_PREFIXES = 20


def rank_rows(costs: NDArray[np.integer], *, rank: int, world_size: int) -> RowIndices:
    """Returns the rows of one rank, dearest first; rows of equal cost stay in order.

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
    """Deals the rows to the ranks, the dearest first, each to the rank with the least load at that moment.

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


def cut_batches(
    costs: NDArray[np.integer],
    *,
    batch_size: int,
    max_tokens: int | None,
    shortest_in_batch: float = SHORTEST_IN_BATCH,
) -> RowIndices:
    """Cuts rows that are sorted by falling cost into batches.

    Args:
        costs: Tokens a row costs, `[N]`, not rising: the first row of a batch is its longest.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; a row that is longer alone is a batch of its own.
            None is no limit.
        shortest_in_batch: What the shortest row of a batch costs at least, as a share of its longest.

    Returns:
        `[batches + 1]` int64: batch b holds rows `result[b]` to `result[b + 1] - 1`.
    """
    rising = costs[::-1]
    boundaries = [np.zeros(1, dtype=np.int64)]
    start = 0
    while start < len(costs):
        longest = int(costs[start])
        rows = batch_size if max_tokens is None else min(batch_size, max(1, max_tokens // longest))
        equal, similar = len(costs) - np.searchsorted(rising, [longest, shortest_in_batch * longest])
        if equal - start >= rows:  # all batches that this one length fills, at once
            boundaries.append(np.arange(start + rows, equal + 1, rows))
        else:
            boundaries.append(np.asarray([min(start + rows, similar)]))
        start = int(boundaries[-1][-1])
    return np.concatenate(boundaries)


def padded_tokens(costs: NDArray[np.integer], boundaries: RowIndices) -> int:
    """Returns the tokens of batches with their padding; arguments and result of `cut_batches`."""
    return int((np.diff(boundaries) * costs[boundaries[:-1]]).sum()) if len(costs) else 0


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
    lengths: NDArray[np.integer],
    shared: NDArray[np.integer],
    prefix_length: int,
    *,
    boundaries: Sequence[int] = (),
) -> NDArray[np.bool_]:
    """Returns which rows are computed with the shared prefix's keys and values, `[N]` bool.

    Args:
        lengths: Tokens of each prompt, `[N]`.
        shared: Leading tokens each has in common with the template, `[N]`.
        prefix_length: P; 0 where the prefix is not shared at all.
        boundaries: Lengths behind which a model computes in another way, the tokens before included; rising.
    """
    worth_it = (shared >= prefix_length) & (lengths <= LONGEST_IN_PREFIXES * prefix_length)
    of_prefix = _boundaries_before(np.asarray(prefix_length), boundaries)
    result: NDArray[np.bool_] = worth_it & (_boundaries_before(lengths, boundaries) == of_prefix)
    return result


def group_rows(
    rows: RowIndices,
    lengths: NDArray[np.integer],
    shared: NDArray[np.integer],
    *,
    prefix_length: int,
    boundaries: Sequence[int] = (),
) -> list[RowIndices]:
    """Groups rows so that those of one group may share a batch.

    Args:
        rows: Row numbers, `[N]`.
        lengths: Tokens of every prompt of the dataset.
        shared: Leading tokens that each of them has in common with the template.
        prefix_length: Leading tokens that are computed once; 0 where they are not.
        boundaries: Lengths behind which a model computes in another way, the tokens before included; rising.

    Returns:
        First the rows with the shared prefix, then the others, the shorter first. A group may be empty.
    """
    mine = lengths[rows]
    has_prefix = rows_with_prefix(mine, shared[rows], prefix_length, boundaries=boundaries)
    before = _boundaries_before(mine, boundaries)
    return [rows[has_prefix], *(rows[~has_prefix & (before == count)] for count in range(len(boundaries) + 1))]


def _boundaries_before(lengths: NDArray[np.integer], boundaries: Sequence[int]) -> NDArray[np.int8]:
    """Returns how many boundaries each length lies behind; one that equals a boundary does not."""
    before = np.zeros(lengths.shape, dtype=np.int8)
    for boundary in boundaries:
        before += lengths > boundary
    return before


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
) -> list[RankPlan]:
    """Returns what `LengthGroupedBatchSampler` gives every rank, in numbers, without holding anybody's rows.

    Args:
        groups: The costs of the rows of each group, `[N]`.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; None is no limit.
        world_size: How many ranks.
        shortest_in_batch: What the shortest row of a batch costs at least, as a share of its longest.
    """
    totals = np.zeros((world_size, 4), dtype=np.int64)
    for values, dealt in (deal_rows(costs, world_size=world_size) for costs in groups):
        for rank in range(world_size):
            costs = np.repeat(values, dealt[:, rank])
            boundaries = cut_batches(
                costs, batch_size=batch_size, max_tokens=max_tokens, shortest_in_batch=shortest_in_batch
            )
            totals[rank] += (len(costs), len(boundaries) - 1, costs.sum(), padded_tokens(costs, boundaries))
    return [RankPlan(*row) for row in totals.tolist()]


def balance(loads: Sequence[int]) -> float:
    """Returns the largest load over the mean: 1 is even, 2 means that the run takes twice the time it could."""
    return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0


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
                ordered_costs, batch_size=batch_size, max_tokens=max_tokens, shortest_in_batch=shortest_in_batch
            )
            self.batches.extend(np.split(ordered_rows, boundaries[1:-1]) if len(mine) else [])
            self.total_tokens += int(ordered_costs.sum())
            self.padded_tokens += padded_tokens(ordered_costs, boundaries)
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
