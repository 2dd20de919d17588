"""Attention of grouped queries without a copy of keys and values for each of them.

In: queries `[B, H, T, K]`, and keys and values `[B, G, S, K]` that H / G query heads share. Out: `[B, T, H, K]`.

How: the queries of a group stand below each other, `[B, G, H / G * T, K]`, so that one product with the group's keys
does for all of them. Why: transformers' `eager` attention first repeats keys and values for every query head, which
copies three to eight times what attention reads. It is registered under `GROUPED`, and `model.tune` takes it where it
is fastest: on short rows, by 3 % of a whole batch.

It is plain attention: what some architectures add to it (logits that are capped, sinks, biases) is refused, so that
those models keep their own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

GROUPED = "memvec_grouped"
# What architectures pass that this attention would have to heed.
ADDITIONS = ("softcap", "s_aux", "position_bias", "head_mask")


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Computes attention as transformers' `eager` does; the signature is that of its `AttentionInterface`.

    Args:
        module: The attention layer.
        query: `[B, H, T, K]`.
        key: `[B, G, S, K]`.
        value: `[B, G, S, V]`.
        attention_mask: `[B or 1, 1, T, S]` to be added to the scores, or None.
        scaling: What scores are multiplied by; None is 1 / sqrt(K).
        dropout: Ignored: nothing is trained here.
        **kwargs: What else the architecture passes.

    Returns:
        `[B, T, H, V]`, and no attention weights.

    Raises:
        NotImplementedError: The architecture adds something to attention.
    """
    if added := [name for name in ADDITIONS if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(added)}")
    batch, heads, tokens, size = query.shape
    groups, width = key.shape[1], key.shape[2]
    query = query * (size**-0.5 if scaling is None else scaling)
    scores = query.reshape(batch, groups, -1, size) @ key.transpose(2, 3)  # [B, G, H / G * T, S]
    if attention_mask is not None:
        scores.view(batch, groups, -1, tokens, width).add_(attention_mask[:, :, None, :, :width])
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    output = (weights @ value).view(batch, heads, tokens, -1)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
