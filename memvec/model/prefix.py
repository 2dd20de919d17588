"""Computes the keys and values of the tokens that all prompts begin with, once, for every batch to use.

In: a decoder and the shared `input_ids`. Out: for each batch a transformers `Cache` that already holds them.

How: the decoder runs the prefix once and returns its cache; each batch gets a shallow copy whose layers hold the same
keys and values as views expanded over the batch, so that the one copy made is the one attention needs anyway (prefix
and new tokens side by side). Why the cache that the model returned and no cache of our own: a fresh `DynamicCache`
filled with the same numbers is silently wrong with sliding windows, since only the model knows each layer's kind.

Valid where every layer is causal attention over keys and values. Recurrent and convolution layers keep a state that is
not per token, so a model with any of those runs without the shared prefix.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

log = logging.getLogger(__name__)

# transformers' names for layers whose state is keys and values; and the classes that hold it: exactly these, since a
# subclass may keep more.
SHAREABLE_KINDS = frozenset({"full_attention", "sliding_attention"})
SHAREABLE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def cache_argument(model: PreTrainedModel) -> str:
    """Returns the name by which a model takes its cache and gives it back.

    transformers 5.24 calls it `cache`; before, and in code that comes with a model, it is `past_key_values`.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class SharedPrefix:
    """The keys and values of a prefix.

    Args:
        cache: What the decoder returned for the prefix, batch size 1.
        input_ids: The prefix, `[P]`.
    """

    def __init__(self, cache: Cache, input_ids: torch.Tensor) -> None:
        self.cache = cache
        self.input_ids = input_ids

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def has_sliding_layers(self) -> bool:
        """Whether a layer keeps the keys and values of a window alone."""
        return any(getattr(layer, "is_sliding", False) for layer in self.cache.layers)

    def expand(self, batch_size: int) -> Cache:
        """Returns a cache for a batch; what the model appends to it does not reach the shared one."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        layer: Any  # `compute_prefix` let only layers with keys and values in
        for layer in cache.layers:
            # Keys and values [1, H, P, K] -> views [B, H, P, K]. `update` concatenates, never writes in place.
            layer.keys = layer.keys.expand(batch_size, -1, -1, -1)
            layer.values = layer.values.expand(batch_size, -1, -1, -1)
        return cache


def compute_prefix(
    decoder: PreTrainedModel, input_ids: torch.Tensor, *, others: Mapping[str, torch.Tensor] | None = None
) -> SharedPrefix | str:
    """Runs the prefix through the decoder.

    Args:
        decoder: A causal decoder without its language-model head.
        input_ids: The prefix, `[P]`, on the decoder's device.
        others: What else the decoder is given with tokens, of `[1, P]`.

    Returns:
        The shared prefix; or, where this model cannot have one, the reason in words.
    """
    kinds = set(getattr(decoder.config.get_text_config(), "layer_types", None) or ())
    if other := kinds - SHAREABLE_KINDS:
        return f"a layer keeps a state that is not keys and values per token ({', '.join(sorted(other))})"
    output = decoder(input_ids=input_ids[None], **(others or {}), use_cache=True)
    cache = getattr(output, cache_argument(decoder), None)
    if not isinstance(cache, Cache):
        return "the model returns no cache of keys and values"
    layer: Any
    for layer in cache.layers:
        if type(layer) not in SHAREABLE_LAYERS or layer.keys is None:
            return f"a layer keeps a state that is not keys and values per token ({type(layer).__name__})"
    return SharedPrefix(cache, input_ids)


def share_prefix(
    decoder: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    others: Mapping[str, torch.Tensor] | None = None,
    padded_behind: bool = False,
) -> SharedPrefix | None:
    """Runs the prefix through the decoder where this model can share one, and says in the log whether it can.

    Args:
        decoder: A causal decoder without its language-model head.
        input_ids: The prefix, `[P]`, on the decoder's device; may be empty.
        others: What else the decoder is given with tokens, of `[1, P]`.
        padded_behind: Whether padding stands between the prefix and what follows, which sliding windows would count.
    """
    if len(input_ids) == 0:
        return None
    prefix = compute_prefix(decoder, input_ids, others=others)
    if padded_behind and not isinstance(prefix, str) and prefix.has_sliding_layers:
        prefix = "sliding windows would count the padding behind it"
    if isinstance(prefix, str):
        log.info("the prompts' shared prefix is computed anew in every batch: %s", prefix)
        return None
    log.info("the prompts share their first %d tokens, which are computed once", len(prefix))
    return prefix
