"""Computes half-precision weights in float32 on a processor that has no half-precision products.

In: a decoder on a CPU whose weights are bfloat16 or float16. Out: the same decoder, its weights the same numbers held
in float32; and, on request, bit for bit as it was.

Why: without instructions for a dtype torch emulates its products, at an eighth of the speed of float32 (measured on an
AVX2 processor: 18 against 140 GFLOP/s). The weights keep the rounding that was asked for, and everything behind them is
computed more exactly, not less. It takes twice their memory, so it is done only where there is room.
"""

from __future__ import annotations

import psutil
import torch
from torch import nn

# Of the memory that is free, what the wider weights may take.
SHARE_OF_FREE_MEMORY = 0.5


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has products of a dtype; torch emulates those that it lacks.

    Where torch was built without oneDNN, which knows, it is taken to have them.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def can_widen(decoder: nn.Module, *, processes: int = 1) -> bool:
    """Whether this machine has room for the weights in float32.

    Args:
        decoder: The decoder, as it was loaded.
        processes: How many processes of this machine hold one each.
    """
    more = sum(weight.numel() * (torch.float32.itemsize - weight.dtype.itemsize) for weight in decoder.parameters())
    return bool(processes * more <= SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available)


def hold_in(decoder: nn.Module, dtype: torch.dtype) -> None:
    """Holds the weights in a dtype, in place.

    Buffers stay as they are: rotary frequencies in bfloat16 would be wrong positions.
    """
    for weight in decoder.parameters():
        if weight.is_floating_point() and weight.dtype != dtype:
            weight.data = weight.data.to(dtype)
