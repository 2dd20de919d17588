"""What lies near what, what stands apart, and what is there twice, among the entries of a page.

In: n vectors. Out: the ten nearest of each; the most similar pairs; the entries least similar to their neighbours.

All similarities are cosines after the mean of the vectors is subtracted: language models' states share a large mean,
beside which every two of them look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memvec.retrieval.exact import ExactIndex, Vectors

NEAREST = 10


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest of n entries, k each: ten, or as many as there are others.

    Args:
        rows: Which they are, `[n, k]`, the nearest first.
        scores: How similar, `[n, k]`.
    """

    rows: NDArray[np.int64]
    scores: Vectors

    def pairs(self, texts: Sequence[str | None], most: int) -> list[tuple[float, int, int]]:
        """Returns the most similar pairs of entries whose texts differ, as (similarity, one, other)."""
        one = np.repeat(np.arange(len(self.rows)), self.rows.shape[1])
        other, scores = self.rows.reshape(-1), self.scores.reshape(-1)
        found: dict[tuple[int, int], float] = {}
        for at in np.argsort(-scores, kind="stable").tolist():
            pair = (int(min(one[at], other[at])), int(max(one[at], other[at])))
            if texts[pair[0]] is None or texts[pair[0]] != texts[pair[1]]:
                found.setdefault(pair, float(scores[at]))
            if len(found) == most:
                break
        return [(score, *pair) for pair, score in found.items()]

    def outliers(self, most: int) -> list[tuple[float, int]]:
        """Returns the entries that are least similar to their nearest on average, as (mean similarity, entry)."""
        if self.rows.shape[1] == 0:
            return []
        means = self.scores.mean(axis=1)
        order = np.argsort(means, kind="stable")[:most].tolist()
        return [(float(means[row]), row) for row in order]


def neighbourhood(vectors: Vectors) -> Neighbourhood:
    """Returns the nearest of each vector among the others.

    Args:
        vectors: `[n, D]`.
    """
    k = min(NEAREST, len(vectors) - 1)
    found = ExactIndex([vectors], center=True).nearest(vectors, k + 1)
    rows, scores = np.empty((len(vectors), k), dtype=np.int64), np.empty((len(vectors), k), dtype=np.float32)
    for row, (similar, others) in enumerate(found):
        keep = others != row
        if keep.all():  # among more equal vectors than were asked for, it may not be its own nearest
            keep[-1] = False
        rows[row], scores[row] = others[keep], similar[keep]
    return Neighbourhood(rows, scores)
