"""The part of a causal language model that makes hidden states.

In: a decoder (`memvec.model.checkpoint` loads it), and which layer. Out: a `Backbone` that maps `input_ids` to the
hidden states of that layer.

How: no tuple of all layers' states, no cache unless asked. `layer=-1` is `last_hidden_state`, after the final norm; a
lower layer k is the output of the k-th decoder layer, before any norm, as `hidden_states[k]` has it, and the layers
above k are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from memvec.errors import ConfigError, ModelError
from memvec.model.prefix import cache_argument


def layer_position(config: PreTrainedConfig, layer: int) -> int:
    """Returns which of the model's hidden states is meant, from 0 (the embeddings) to the number of layers.

    Raises:
        ConfigError: The model has no such layer.
    """
    depth: int = config.get_text_config().num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ConfigError(f"model.layer={layer}: the model has {depth} layers; allowed: {-depth - 1} to {depth}")
    return layer % (depth + 1)


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList | None:
    """Returns a decoder's layers, or None where they cannot be told."""
    depth: int = decoder.config.get_text_config().num_hidden_layers
    lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)
    return next(lists, None)  # modules() yields outer modules first


class Backbone(nn.Module):
    """A decoder that returns one layer's hidden states.

    Args:
        decoder: The decoder, without a language-model head.
        layer: Which state: -1 is after the final norm, 0 the embeddings, k after k decoder layers; negative numbers
            count as in `hidden_states[layer]`.

    Raises:
        ConfigError: The decoder has no such layer.
        ModelError: A lower layer was asked for and this architecture's layers cannot be told.
    """

    def __init__(self, decoder: PreTrainedModel, *, layer: int = -1) -> None:
        super().__init__()
        self.decoder = decoder
        self._cache_argument = cache_argument(decoder)
        self.dimension: int = decoder.config.get_text_config().hidden_size
        depth: int = decoder.config.get_text_config().num_hidden_layers
        self._tapped: torch.Tensor | None = None
        position = layer_position(decoder.config, layer)
        if position < depth:
            self._tap(position, depth)
        # Lightning casts a half-precision module's buffers too, and rotary frequencies in bfloat16 are wrong positions.
        self._float32_buffers = {n: b for n, b in decoder.named_buffers() if b.dtype == torch.float32}

    def _tap(self, position: int, depth: int) -> None:
        """Removes the layers above `position` and keeps the state there, before the final norm gets it."""
        layers = decoder_layers(self.decoder)
        if layers is None:
            raise ModelError(f"{type(self.decoder).__name__}: its layers cannot be told; only model.layer=-1 works")
        del layers[max(position, 1) :]
        text_config = self.decoder.config.get_text_config()
        text_config.num_hidden_layers = len(layers)
        if getattr(text_config, "layer_types", None):
            text_config.layer_types = text_config.layer_types[: len(layers)]
        if position == 0:  # the state before the first layer, which stays since a decoder needs one
            layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            layers[-1].register_forward_hook(self._keep_output)

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tapped = args[0] if args else kwargs["hidden_states"]

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._tapped = output[0] if isinstance(output, tuple) else output

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Backbone:
        """Moves and casts like any module, but leaves float32 buffers float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, original in self._float32_buffers.items():
            parent, _, leaf = name.rpartition(".")
            moved = self.decoder.get_buffer(name)
            if moved.dtype != torch.float32:
                setattr(self.decoder.get_submodule(parent), leaf, original.to(moved.device))
        return self

    def forward(self, input_ids: torch.Tensor, *, cache: Cache | None = None) -> torch.Tensor:
        """Returns hidden states.

        Args:
            input_ids: `[B, T]` int64, right-padded; no mask is needed, since no token sees what stands right of it.
            cache: Keys and values of the tokens that come before `input_ids`, or None.

        Returns:
            `[B, T, D]`, of the model's dtype.
        """
        if cache is None:
            output = self.decoder(input_ids=input_ids, use_cache=False)
        else:
            output = self.decoder(input_ids=input_ids, use_cache=True, **{self._cache_argument: cache})
        if self._tapped is None:
            return output.last_hidden_state  # type: ignore[no-any-return]
        hidden, self._tapped = self._tapped, None
        return hidden
