"""A module that moves and casts like any other, except for what was loaded in a dtype of its own.

In: a module whose weights are loaded. Out: the same, safe from whoever calls `.to(dtype)` on it, as Lightning's
half-precision strategies do.

Why: transformers keeps some weights of a half-precision model in float32 on purpose (routers' biases, for one), and
rotary frequencies, a buffer, in any model: rounded to bfloat16 they are other positions. A cast of the whole module
would round them all, and every vector would differ from those of the same checkpoint in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel


class DtypeKeeper(nn.Module):
    """A module of which some tensors are moved but never cast; `keep_dtypes` says which, once its weights are there."""

    _never_cast: frozenset[str] = frozenset()

    def keep_dtypes(self, dtype: torch.dtype) -> None:
        """Keeps parameters that have another dtype than most, and float32 buffers, as they are from now on.

        Args:
            dtype: What the weights were loaded in.
        """
        weights = {name for name, weight in self.named_parameters() if weight.dtype != dtype}
        buffers = {name for name, buffer in self.named_buffers() if buffer.dtype == torch.float32}
        self._never_cast = frozenset(weights | buffers)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DtypeKeeper:
        named: Iterator[tuple[str, torch.Tensor]] = chain(self.named_parameters(), self.named_buffers())
        never_cast = {id(tensor) for name, tensor in named if name in self._never_cast}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            if id(tensor) in never_cast and changed.dtype != tensor.dtype:
                return tensor.to(changed.device)
            return changed

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


class LoadedModel(DtypeKeeper):
    """A whole language model, as part of another module.

    Args:
        model: With its weights loaded.
        dtype: What they were loaded in.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.keep_dtypes(dtype)
