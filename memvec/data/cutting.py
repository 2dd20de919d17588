"""Cuts rows sorted by cost into batches within a token budget.

In: costs in tokens, most expensive first. Out: where each batch begins: at most `batch_size` rows and `max_tokens`
tokens, which count padding where there is any; and then of lengths that are not too far apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RowIndices = NDArray[np.int64]

# The shortest row of a batch, as a share of its longest: where few rows meet a large budget, a batch would otherwise
# hold more padding than tokens, and ranks with one row of the long tail more than others would work for longer.
SHORTEST_IN_BATCH = 0.75


def cut_batches(
    costs: NDArray[np.integer],
    *,
    batch_size: int,
    max_tokens: int | None,
    shortest_in_batch: float = SHORTEST_IN_BATCH,
    is_padded: bool = True,
) -> RowIndices:
    """Cuts rows that are sorted by falling cost into batches.

    Args:
        costs: Tokens a row costs, `[N]`, not rising: the first row of a batch is its longest.
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; a row that is longer alone is a batch of its own.
            None is no limit.
        shortest_in_batch: What the shortest row of a padded batch costs at least, as a share of its longest.
        is_padded: Whether rows are padded to the longest of their batch; else lengths may differ as they like.

    Returns:
        `[batches + 1]` int64: batch b holds rows `result[b]` to `result[b + 1] - 1`.
    """
    if not is_padded:
        return _cut_by_sums(costs, batch_size=batch_size, max_tokens=max_tokens)
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


def _cut_by_sums(costs: NDArray[np.integer], *, batch_size: int, max_tokens: int | None) -> RowIndices:
    ends = costs.cumsum(dtype=np.int64)
    boundaries = [0]
    while (start := boundaries[-1]) < len(costs):
        before = int(ends[start - 1]) if start else 0
        fits = len(costs) if max_tokens is None else int(np.searchsorted(ends, before + max_tokens, side="right"))
        boundaries.append(min(start + batch_size, max(start + 1, fits)))
    return np.asarray(boundaries, dtype=np.int64)


def padded_tokens(costs: NDArray[np.integer], boundaries: RowIndices, *, is_padded: bool = True) -> int:
    """Returns the tokens of batches, with their padding where they have any; arguments and result of `cut_batches`."""
    if not is_padded or not len(costs):
        return int(costs.sum())
    return int((np.diff(boundaries) * costs[boundaries[:-1]]).sum())
