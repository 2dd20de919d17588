"""Upcasts bf16/fp16 weights to float32 on CPUs whose half-precision matmul is slower.

In: a model on a CPU whose weights are bfloat16 or float16. Out: the same model, its weights the same numbers held in
float32; cast back, they are bit for bit what they were.

Why: without instructions for a dtype torch emulates its matmuls, at an eighth of the speed of float32 (measured on an
AVX2 processor: 18 against 140 GFLOP/s), and some instructions are slow themselves (167 against 308 GFLOP/s on a Xeon
whose tiles are hidden). The weights keep the rounding that was asked for, and everything behind them is computed more
exactly, not less. It takes twice their memory, so it is done only where there is room. It is a rule, not one of the
choices that `memvec.model.tuning` measures: a measurement that comes out differently on two ranks, or for a run and the
queries to it, would give the same text two vectors that differ by bfloat16's rounding.
"""

from __future__ import annotations

import logging

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from memvec.model.torch_internals import has_fast_matmul

log = logging.getLogger(__name__)

# Of the memory that is free, what the wider weights may take.
SHARE_OF_FREE_MEMORY = 0.5


def widen_where_slow(model: PreTrainedModel, *, processes: int = 1) -> None:
    """Holds the weights in float32, in place, where this processor computes their dtype more slowly and there is room.

    Args:
        model: A model whose weights this process holds whole.
        processes: How many processes of this machine hold one each.
    """
    if model.device.type != "cpu" or has_fast_matmul(model.dtype):
        return
    dtype = str(model.dtype).removeprefix("torch.")
    if has_room(model, processes=processes):
        log.info("this processor has no fast %s matmul: the weights, rounded to it, are computed in float32", dtype)
        widen(model)
    else:
        log.info("this processor has no fast %s matmul, and no memory for the weights in float32: this is slow", dtype)


def has_room(model: nn.Module, *, processes: int = 1) -> bool:
    """Whether this machine has room for the weights in float32.

    Args:
        model: The model, as it was loaded.
        processes: How many processes of this machine hold one each.
    """
    more = sum(weight.numel() * (torch.float32.itemsize - weight.dtype.itemsize) for weight in model.parameters())
    return bool(processes * more <= SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available)


def widen(model: nn.Module) -> None:
    """Holds the weights in float32, in place, one after the other so that only one is there twice."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.float()
