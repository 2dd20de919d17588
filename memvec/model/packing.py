"""Pre-packs Linear weights into oneDNN's blocked layout and fuses gated MLP activations.

In: a decoder on a CPU. Out: the same decoder, every plain `nn.Linear` packed once, and the activation and the gating
product of gated feed-forward blocks done inside the matmuls.

Why: torch's own matmuls bring a weight into oneDNN's blocks anew in every call (5 % of a batch of 1,024 tokens, 20 %
of one of 256), and a gated block passes twice more over its widest activations than it needs to. It is also float32 to
the last bit where oneDNN is fast and MKL is not: torch's `fp32_precision`, another way to oneDNN, allows bfloat16
matmuls, which are other vectors on a processor with bfloat16 tiles (AMX). The operators are used directly
(`memvec.model.torch_internals`), since freezing a whole model with dynamic shapes takes minutes. The packed weight
replaces the plain one, so memory does not double, and `unpack` gives exactly the weights that were there.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from memvec.model.torch_internals import (
    has_fast_matmul,
    has_hooks,
    has_packed_matmul,
    pack_weight,
    packed_linear,
    packed_linear_times,
)

# Activations that oneDNN computes with the product: its name, and its variant.
FUSED_ACTIVATIONS = {"SiLU": ("swish", ""), "SiLUActivation": ("swish", ""), "GELUTanh": ("gelu", "tanh")}
GATED_BLOCK = {"gate_proj", "up_proj", "down_proj"}


class PackedLinear(nn.Module):
    """`nn.Linear` with its weight in oneDNN's layout.

    Args:
        linear: The layer, on a CPU; its weight is copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # Not a buffer: an opaque tensor can be neither cast nor copied as the rest of a module is.
        self.packed = pack_weight(linear.weight.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`."""
        return packed_linear(x, self.packed, self.bias)

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> torch.Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`, an activation applied."""
        return packed_linear(x, self.packed, self.bias, activation=activation)

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`, multiplied by `factor` of that shape."""
        return packed_linear_times(x, self.packed, self.bias, factor)

    def unpacked(self) -> nn.Linear:
        """Returns the plain layer, bit for bit as it was."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.packed.to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear


class PackedGatedBlock(nn.Module):
    """A gated feed-forward block, `down(activation(gate(x)) * up(x))`, of packed layers.

    Args:
        block: The block, its three layers packed.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.activation = FUSED_ACTIVATIONS[type(block.act_fn).__name__]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[..., D]` to `[..., D]`."""
        block = cast(Any, self.block)
        gate = block.gate_proj.activated(x, self.activation)  # [..., D] -> [..., F]
        return cast(torch.Tensor, block.down_proj(block.up_proj.times(x, gate)))  # [..., F] -> [..., D]


def can_pack(decoder: nn.Module, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this processor multiplies packed weights of a dtype, and the decoder has layers to pack."""
    if device.type != "cpu" or not has_packed_matmul():
        return False
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and has_fast_matmul(dtype)):
        return False
    return any(_is_packable(module) for module in decoder.modules())


def pack(decoder: nn.Module) -> None:
    """Packs every plain linear layer in place; those of subclasses, with hooks, or spread over devices stay."""
    for parent, name, child in _children(decoder):
        if _is_packable(child):
            setattr(parent, name, PackedLinear(child))
    for parent, name, child in _children(decoder):
        if _is_gated_block(child):
            setattr(parent, name, PackedGatedBlock(child))


def unpack(decoder: nn.Module) -> None:
    """Undoes `pack`, in place."""
    for parent, name, child in _children(decoder):
        if isinstance(child, PackedGatedBlock):
            setattr(parent, name, child.block)
    for parent, name, child in _children(decoder):
        if isinstance(child, PackedLinear):
            setattr(parent, name, child.unpacked())


def is_packed(decoder: nn.Module) -> bool:
    """Whether a layer of the decoder is packed."""
    return any(isinstance(module, PackedLinear) for module in decoder.modules())


def _children(decoder: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Returns every module below the decoder with its parent and its name there; a list, since both change."""
    return [(parent, name, child) for parent in decoder.modules() for name, child in parent.named_children()]


def _is_packable(module: nn.Module) -> bool:
    return type(module) is nn.Linear and type(module.weight.data) is torch.Tensor and not has_hooks(module)


def _is_gated_block(module: nn.Module) -> bool:
    """Whether a module looks like a gated block; that it computes as one is for a comparison of vectors to say."""
    children = dict(module.named_children())
    return (
        set(children) == {*GATED_BLOCK, "act_fn"}
        and all(isinstance(children[name], PackedLinear) for name in GATED_BLOCK)
        and type(children["act_fn"]).__name__ in FUSED_ACTIVATIONS
        and not has_hooks(module)
    )
