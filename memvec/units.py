"""Unit vectors, of which a cosine similarity is the dot product.

In: vectors `[N, D]`, or of several layers `[N, L, D]`. Out: the same, each at length 1; a vector of zeros, which has no
direction, stays as it is.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.float32, np.float64)


def inverse_lengths(vectors: NDArray[Number]) -> NDArray[Number]:
    """Returns 1 / length of each vector, `[N]` or `[N, L]`; 0 for one of zeros, which is then similar to nothing."""
    lengths: NDArray[Number] = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
    inverse: NDArray[Number] = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return inverse


def as_units(vectors: NDArray[Number]) -> NDArray[Number]:
    """Returns vectors at length 1, of the same shape; zeros stay zeros."""
    units: NDArray[Number] = vectors * inverse_lengths(vectors)[..., None]
    return units
