"""Exact cosine similarity between queries and all vectors of a run.

In: the vectors as mapped blocks. Out: the nearest rows of each query, or its similarity to every row.

How: one pass over the vectors for each group of queries, in blocks that stay in the processor's cache, so that nothing
but the scores is ever in memory: a million rows of 576 numbers are 2.3 GB read at the speed of memory. The mean is
subtracted in each block before the product, not from the product after it: where the mean is most of every vector, as
in language models' states, the difference of two nearly equal products would have few digits left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from memvec.schema import VECTOR
from memvec.units import as_units, inverse_lengths

Vectors = NDArray[np.float32]
Mapped = NDArray[np.float32] | NDArray[np.float16]  # as they lie on disk
Neighbours = tuple[Vectors, NDArray[np.int64]]

ROWS_PER_BLOCK = 256
SCORES_IN_MEMORY = 2**26  # float32: 256 MiB
QUERIES_AT_ONCE = 256


def mapped_vectors(dataset: Dataset, name: str = VECTOR) -> list[Mapped]:
    """Returns views of a loaded run's vectors, `[n, D]` each, mapped from disk and not copied.

    Args:
        dataset: The run, loaded.
        name: Of the column.
    """
    column = dataset.data.column(name)
    width = column.type.list_size
    return [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks if len(chunk)]


def places_of(rows: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yields where rows lie that are counted over several parts: which part, and which row of it.

    Args:
        rows: From 0, counted from the first part's on.
        ends: How many rows there are up to the end of each part.
    """
    parts = np.searchsorted(ends, rows, side="right")
    # Counted from the end of its part, a row's position is negative.
    yield from zip(parts.tolist(), (rows - ends[parts]).tolist(), strict=True)


class ExactIndex:
    """Finds rows by exact cosine similarity in float32.

    Args:
        parts: The vectors, `[n, D]` each, N rows in all, float32 or float16.
        center: Whether the vectors' mean is subtracted from vectors and queries before they are compared.
        among: Which rows are compared, `[N]`; None is all. The mean is that of all.
    """

    def __init__(self, parts: Sequence[Mapped], *, center: bool, among: NDArray[np.bool_] | None = None) -> None:
        self.parts = parts
        self.among = np.ones(sum(map(len, parts)), dtype=bool) if among is None else among
        self.compared = np.flatnonzero(self.among)  # [C], the rows
        self.dimension: int = parts[0].shape[1]
        self.mean = mean_vector(parts) if center else None
        self._inverse_lengths = np.empty(len(self.compared), dtype=np.float32)  # [C]
        for start, block in self._blocks():
            self._inverse_lengths[start : start + len(block)] = inverse_lengths(block)

    def nearest(self, queries: Vectors, k: int) -> list[Neighbours]:
        """Finds the most similar rows.

        Args:
            queries: `[Q, D]`.
            k: How many; fewer where there are fewer rows.

        Returns:
            For each query similarities, `[k]` from -1 to 1, falling, and the rows they belong to, `[k]`.
        """
        found = [top_k(scores, k) for group in self._groups(queries) for scores in self.scores(group)]
        return [(scores, self.compared[positions]) for scores, positions in found]

    def scores(self, queries: Vectors) -> Vectors:
        """Returns the similarity of every query with every row that is compared, `[Q, C]`."""
        units = as_units(queries if self.mean is None else queries - self.mean)
        scores = np.empty((len(units), len(self.compared)), dtype=np.float32)
        for start, block in self._blocks():
            scores[:, start : start + len(block)] = units @ block.T
        scores *= self._inverse_lengths
        return scores

    def _blocks(self) -> Iterator[tuple[int, Vectors]]:
        """Yields the vectors that are compared, in order, each block with the position it starts at among them."""
        row = position = 0
        for part in self.parts:
            for start in range(0, len(part), ROWS_PER_BLOCK):
                block = part[start : start + ROWS_PER_BLOCK]
                is_compared = self.among[row + start : row + start + len(block)]
                block = (block if is_compared.all() else block[is_compared]).astype(np.float32, copy=False)
                yield position, block if self.mean is None else block - self.mean
                position += len(block)
            row += len(part)

    def _groups(self, queries: Vectors) -> list[Vectors]:
        size = min(QUERIES_AT_ONCE, max(1, SCORES_IN_MEMORY // max(1, len(self.compared))))
        return [queries[start : start + size] for start in range(0, len(queries), size)]


def mean_vector(parts: Sequence[Mapped]) -> Vectors:
    """Returns the mean of all vectors, `[D]`, added up in float64."""
    total = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0)
    mean: Vectors = (total / sum(map(len, parts))).astype(np.float32)
    return mean


def top_k(scores: Vectors, k: int) -> Neighbours:
    """Returns the k largest of `[N]` scores, falling, and their positions; of equals the first stands first."""
    if len(scores) == 0:
        return scores, np.empty(0, dtype=np.int64)
    positions = np.argpartition(-scores, min(k, len(scores)) - 1)[:k]
    positions = positions[np.lexsort((positions, -scores[positions]))]
    return scores[positions], positions
