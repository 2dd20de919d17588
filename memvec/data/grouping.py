"""Which rows may share a batch: those that begin with the shared prefix, and those on one side of a length boundary.

In: the lengths of the prompts, how many leading tokens each shares with the template, a model's length boundaries. Out:
the prefix that spares most tokens, and groups of rows. Pure functions of lengths: every rank computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memvec.data.cutting import RowIndices

# A prefix that is less than a twentieth of a row saves less than its mask costs: rows without one take causal kernels.
LONGEST_IN_PREFIXES = 20


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
