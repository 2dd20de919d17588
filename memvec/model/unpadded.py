"""Attention among the tokens of a batch that hold no padding, and that prompts share where they begin alike.

In: the queries, keys and values of a `TokenTrie` (`memvec.data.trie`), as transformers hands them to an attention
implementation. Out: what each prompt alone would give, for each token once.

How: keys and values are gathered for every prompt, those of tokens that it shares included, and each prompt's queries
attend to them, aligned at the end: on a CUDA device by torch's variable-length FlashAttention, elsewhere by SDPA over
padded rows. It is registered with transformers (`AttentionInterface`) under a name of its own, so the model's own
forward pass does everything else; what that passes along and is not computed here, such as a softcap, is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from memvec.data.trie import TokenTrie
from memvec.model.backbone import Backbone
from memvec.model.prefix import SHAREABLE_KINDS

NAME = "memvec_unpadded"
# What models pass to an attention implementation besides, and what does not change its result here.
WITHOUT_EFFECT = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"})
HALF = (torch.bfloat16, torch.float16)


class PaddedRows(NamedTuple):
    """Where a trie's tokens stand in padded rows, for attention without a kernel for rows of several lengths.

    queries: `[B, Q]` int64, of each row's own tokens where they stand among all; behind the last, any.
    keys: `[B, K]` int64, of each row's tokens where they stand among all; behind the last, any.
    distance: `[B, Q, K]` int64, how far before a query a key stands in its prompt; negative behind it.
    own: `[U]` int64, where each of all tokens stands among the `B * Q` of `queries`.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    distance: torch.Tensor
    own: torch.Tensor


def attention_rows(trie: TokenTrie) -> TokenTrie | PaddedRows:
    """Returns what the attention on the trie's device needs to know of its rows."""
    if trie.input_ids.is_cuda:
        return trie
    queries, keys = trie.query_offsets.long(), trie.key_offsets.long()
    query_columns, key_columns = (torch.arange(n, device=keys.device) for n in (trie.longest_query, trie.longest_key))
    shared = keys.diff() - queries.diff()  # [B]
    return PaddedRows(
        queries=(queries[:-1, None] + query_columns).clamp_max(len(trie.input_ids) - 1),
        keys=trie.keys[(keys[:-1, None] + key_columns).clamp_max(len(trie.keys) - 1)],
        distance=(shared[:, None] + query_columns)[:, :, None] - key_columns,
        own=(query_columns < queries.diff()[:, None]).flatten().nonzero()[:, 0],
    )


def can_leave_padding_out(decoder: PreTrainedModel, *, computed_in: torch.dtype, device: torch.device) -> bool:
    """Whether a decoder may compute a trie, as far as can be told without trying.

    Args:
        decoder: The decoder.
        computed_in: Dtype of the computation; another than the weights' means autocast.
        device: Where it computes; on a CUDA device the kernel has half precision alone.
    """
    if device.type == "cuda":
        if computed_in not in HALF or decoder.dtype != computed_in:
            return False
    elif device.type != "cpu":
        return False
    config = decoder.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    # Where an implementation was asked for, it is not for memvec to take another.
    return decoder._supports_attention_backend and config._attn_implementation == "sdpa" and not kinds - SHAREABLE_KINDS


def last_states(backbone: Backbone, trie: TokenTrie) -> list[torch.Tensor]:
    """Computes the tokens of a trie, each once.

    Returns:
        The last token's state of each row, `[B, D]` for each of the backbone's layers, in the order of the batch.
    """
    backbone.trace()  # in the model's own way
    with unpadded_attention(backbone.decoder):
        others = {"position_ids": trie.position_ids[None], "rows": attention_rows(trie)}
        states = backbone(trie.input_ids[None], others=others)  # of each layer [1, U, D]
    return [state[0, trie.last] for state in states]


@contextmanager
def unpadded_attention(decoder: PreTrainedModel) -> Iterator[None]:
    """Has a decoder's layers take the attention of this module."""
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    rows: TokenTrie | PaddedRows | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Maps `[1, H, U, K]` to `[1, U, H, K]`, as transformers wants its attention implementations."""
    if rows is None:
        raise RuntimeError(f"{type(module).__name__} is not given the rows")
    unknown = {name for name, other in others.items() if other is not None} - WITHOUT_EFFECT
    if unknown or dropout or attention_mask is not None:
        raise RuntimeError(f"{type(module).__name__} asks for {', '.join(sorted(unknown)) or 'a mask or dropout'}")
    if not (getattr(module, "is_causal", True) and others.get("is_causal") is not False):
        raise RuntimeError(f"{type(module).__name__} is not causal")
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [U, H, K]
    if isinstance(rows, PaddedRows):
        return _attend_padded(query, key, value, rows, scaling, sliding_window)[None], None
    return _attend_varlen(query, key, value, rows, scaling, sliding_window)[None], None


def _attend_padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: PaddedRows, scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:  # fmt: skip
    batch, width = rows.keys.shape
    is_seen = None
    if batch > 1 or (sliding_window is not None and sliding_window < width):
        is_seen = rows.distance >= 0
        if sliding_window is not None:
            is_seen &= rows.distance < sliding_window
        is_seen = is_seen[:, None]
    # A row alone shares nothing, and needs no mask: SDPA then skips what lies behind the diagonal, half of a long row.
    attended = scaled_dot_product_attention(
        query[rows.queries].transpose(1, 2),
        key[rows.keys].transpose(1, 2),
        value[rows.keys].transpose(1, 2),
        attn_mask=is_seen,
        is_causal=is_seen is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # [B, H, Q, K]
    return attended.transpose(1, 2).flatten(0, 1)[rows.own]


def _attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: TokenTrie, scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:  # fmt: skip
    left = -1 if sliding_window is None else sliding_window - 1
    options: dict[str, Any] = {"scale": scaling, "window_size": (left, 0), **GROUPED}
    lengths = (rows.query_offsets, rows.key_offsets, rows.longest_query, rows.longest_key)
    attended: Any = varlen_attn(query, key[rows.keys], value[rows.keys], *lengths, **options)
    return cast(torch.Tensor, attended)


# Before it had this argument it took fewer heads of keys than of queries without being told.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

AttentionInterface.register(NAME, _attend)
