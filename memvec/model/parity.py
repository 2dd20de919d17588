"""Decides how far the fast path can be trusted, on a few real rows.

In: a function that computes the same rows along each path. Out: the fastest path that agrees with the plain one.

The paths, fastest first: batches that share the prefix's keys and values; padded batches that compute every token; one
row at a time without padding, which is the plain path and right by definition. A model that is not causal, or a library
whose cache has changed, differs on the first rows and falls back instead of filling a store with wrong vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from itertools import pairwise

import torch

log = logging.getLogger(__name__)


class Path(Enum):
    """How a batch is computed; the value is what logs and the manifest say."""

    SHARED_PREFIX = "batched, shared prefix computed once"
    BATCHED = "batched"
    ONE_BY_ONE = "one by one"


# The largest relative error between two right ways of computing the same rows. Half precision differs by about its
# rounding times the root of the depth (measured: 0.015 with SmolLM2 in bfloat16); a wrong position or mask gives 0.1
# to 1.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.1}


def relative_error(vectors: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest relative error of a row, both `[B, D]`; NaN counts as infinite unless both have it."""
    both = torch.isfinite(vectors).all(dim=1) | torch.isfinite(reference).all(dim=1)  # [B]
    if not both.any():
        return 0.0  # the model itself gives no numbers here, along either path; the writer deals with that
    error = (vectors[both] - reference[both]).norm(dim=1) / reference[both].norm(dim=1).clamp_min(1e-30)
    return float(error.nan_to_num(nan=torch.inf).max())


def choose_path(
    compute: Callable[[Path], torch.Tensor],
    *,
    first: Path,
    dtype: torch.dtype,
    agree: Callable[[float], float] = float,
) -> tuple[Path, dict[str, float]]:
    """Returns the fastest path that agrees with the plain one.

    Args:
        compute: Returns the probe rows' vectors along a path, `[B, D]`.
        first: The fastest path there is.
        dtype: Of the computation; decides the tolerance.
        agree: Makes this process's error the one that all processes which must take the same path decide by.

    Returns:
        The path, and the relative error of each path that was tried, by its name.
    """
    errors: dict[str, float] = {}
    reference = compute(Path.ONE_BY_ONE)
    paths = list(Path)
    for path, next_path in pairwise(paths[paths.index(first) :]):
        error = errors[path.value] = agree(relative_error(compute(path), reference))
        if error <= TOLERANCE[dtype]:
            return path, errors
        log.warning(
            "parity probe: computing %s differs from one by one by %.2g, more than %.2g allows; computing %s",
            path.value, error, TOLERANCE[dtype], next_path.value,
        )  # fmt: skip
    return Path.ONE_BY_ONE, errors
