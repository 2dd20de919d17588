"""Decides how far the fast ways of computing can be trusted, on a few real rows.

In: a function that computes the same rows in each mode. Out: the fastest mode that agrees with the plain one.

The modes, fastest first: batches without padding whose rows share what they begin with; padded batches that share the
prefix's keys and values; padded batches that compute every token;
batches of rows of one length, which need no padding; one row at a time, which is the plain way and right by definition.
A model that is not causal, whose positions depend on the width of a batch, or a library whose cache has changed differs
on the first rows and falls back instead of filling a store with wrong vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from enum import Enum
from itertools import accumulate, groupby, pairwise

import torch

log = logging.getLogger(__name__)


class ExecutionMode(Enum):
    """How a batch is computed; the value is what logs and the manifest say."""

    UNPADDED = "batched, without padding, shared tokens computed once"
    SHARED_PREFIX = "batched, shared prefix computed once"
    BATCHED = "batched"
    EQUAL_LENGTHS = "batches of equal length"
    ONE_BY_ONE = "one by one"

    @property
    def shares_prefix(self) -> bool:
        """Whether a row does not cost the tokens that all rows begin with."""
        return self in (ExecutionMode.UNPADDED, ExecutionMode.SHARED_PREFIX)


# The largest relative error between two right ways of computing the same rows. Half precision differs by about its
# rounding times the root of the depth (measured: 0.015 with SmolLM2 in bfloat16); a wrong position or mask gives 0.1
# to 1.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.1}


def tolerance_of(dtype: torch.dtype) -> float:
    """Returns the largest relative error of a row that is rounding; a quantised model computes in bfloat16 at best."""
    return TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])


def relative_error(vectors: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest relative error of a row, both `[…, D]`; NaN counts as infinite unless both have it."""
    vectors, reference = vectors.flatten(0, -2), reference.flatten(0, -2)
    both = torch.isfinite(vectors).all(dim=1) | torch.isfinite(reference).all(dim=1)  # [B]
    if not both.any():
        return 0.0  # the model itself gives no numbers here, either way; the writer deals with that
    error = (vectors[both] - reference[both]).norm(dim=1) / reference[both].norm(dim=1).clamp_min(1e-30)
    return float(error.nan_to_num(nan=torch.inf).max())


def choose_mode(
    compute: Callable[[ExecutionMode], torch.Tensor | None],
    *,
    first: ExecutionMode,
    dtype: torch.dtype,
    without: Collection[ExecutionMode] = (),
    agree: Callable[[float], float] = float,
) -> tuple[ExecutionMode, dict[str, float]]:
    """Returns the fastest mode that agrees with the plain one.

    Args:
        compute: Returns the probe rows' vectors in a mode, `[B, D]`; None where the model cannot compute so.
        first: The fastest mode there is.
        dtype: Of the computation; decides the tolerance.
        without: Modes that there are not.
        agree: Makes this process's error the one that all processes which must take the same mode decide by.

    Returns:
        The mode, and the relative error of each mode that was tried, by its name.
    """
    errors: dict[str, float] = {}
    tolerance = tolerance_of(dtype)
    reference = compute(ExecutionMode.ONE_BY_ONE)
    modes = [mode for mode in ExecutionMode if mode not in without]
    for mode, next_mode in pairwise(modes[modes.index(first) :]):
        vectors = compute(mode)
        if vectors is None or reference is None:
            continue
        error = errors[mode.value] = agree(relative_error(vectors, reference))
        if error <= tolerance:
            return mode, errors
        log.log(
            # What only some models allow is no reason to worry.
            logging.INFO if mode is ExecutionMode.UNPADDED else logging.WARNING,
            "parity probe: computing %s differs from one by one by %.2g, more than %.2g allows; computing %s",
            mode.value, error, tolerance, next_mode.value,
        )  # fmt: skip
    return ExecutionMode.ONE_BY_ONE, errors


def parts_of_batch(mode: ExecutionMode, length: torch.Tensor) -> list[slice]:
    """Returns the rows of a batch that are computed together in a mode.

    Args:
        mode: How.
        length: Tokens of each row, `[B]`, B at least 1; rows of one length stand together.

    Returns:
        Slices that cover all rows, in order.
    """
    if mode is ExecutionMode.ONE_BY_ONE:
        return [slice(row, row + 1) for row in range(len(length))]
    if mode is ExecutionMode.EQUAL_LENGTHS:
        sizes = [len(list(rows)) for _, rows in groupby(length.tolist())]
        return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    return [slice(0, len(length))]
