"""Gets through a batch that does not fit into memory.

In: a function that computes some rows of a batch. Out: its result for all of them, with NaN, or what else was asked
for, where a single row does not fit.

How: on a real out-of-memory error, and no other, the rows are halved and both halves tried, down to one. The error is
let go of before the next try: its traceback holds the very tensors that are too many.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from memvec.errors import ModelError

log = logging.getLogger(__name__)

# What torch's CPU allocator says; it raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, of the device or the host, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


def compute_in_parts(
    compute: Callable[[slice], torch.Tensor],
    *,
    parts: Sequence[slice],
    shape: tuple[int, ...],
    may_halve: bool = True,
    missing: float = torch.nan,
) -> tuple[torch.Tensor, list[int]]:
    """Computes all rows of a batch in as few parts as memory allows.

    Args:
        compute: Returns `[b, …]` for a slice of b rows.
        parts: Slices that cover all B rows, in order.
        shape: Of one row's result.
        may_halve: Whether a part that does not fit may be tried as two; false where other processes compute along.
        missing: What stands in the place of a row that does not fit.

    Returns:
        `[B, …]`, and the positions of rows that do not fit even alone, which are filled with `missing`.

    Raises:
        ModelError: A part does not fit, and it may not be halved.
        RuntimeError: Whatever `compute` raises but out of memory.
    """
    computed: dict[int, torch.Tensor] = {}
    too_large: list[int] = []
    waiting = list(reversed(parts))
    while waiting:
        part = waiting.pop()
        size = part.stop - part.start
        try:
            computed[part.start] = compute(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not may_halve:
                found = f"a batch of {size} entries cannot be halved, since other processes are computing it too"
                advice = "set a smaller data.max_tokens: what was computed is kept, and the same command resumes"
                raise ModelError("out of memory", found=found, advice=advice) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            too_large.append(part.start)
            continue
        log.warning("out of memory with a batch of %d entries: trying two halves", size)
        middle = part.start + size // 2
        waiting += [slice(middle, part.stop), slice(part.start, middle)]
    device = next(iter(computed.values())).device if computed else None
    for row in too_large:
        computed[row] = torch.full((1, *shape), missing, device=device)
    return torch.cat([computed[start] for start in sorted(computed)]), sorted(too_large)
