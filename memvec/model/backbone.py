"""The part of a causal language model that makes hidden states.

In: a decoder (`memvec.model.checkpoint` loads it, or a program lends it), and which layers. Out: a `Backbone` that maps
`input_ids` to the hidden states of those layers, the very numbers of the full model's `hidden_states[layer]`.

How: the decoder itself says where its states pass. Its first forward pass is one over two tokens with all of its hidden
states, and what each module is given and returns is compared with them (`memvec.model.tracing`). From then on hooks at
those places, which exist only during a call, take the states; behind the last of them the forward pass is stopped, so
that no layer above it runs. Why no layer is removed and no config changed: what a decoder makes of its config differs
by architecture, and a decoder that is lent has to be given back as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from memvec.errors import ConfigError
from memvec.model.casting import DtypeKeeper
from memvec.model.prefix import cache_argument
from memvec.model.tracing import Place, all_hidden_states, find_places, take_states

TOKEN_TYPES = "token_type_ids"


def layer_position(config: PreTrainedConfig, layer: int) -> int:
    """Returns which of the model's hidden states is meant, from 0 (the embeddings) to the number of layers.

    Raises:
        ConfigError: The model has no such layer.
    """
    depth: int = config.get_text_config().num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        found = f"the model has {depth} layers"
        raise ConfigError("model.layer", layer, found=found, allowed=f"{-depth - 1} to {depth}")
    return layer % (depth + 1)


def refuse_same_layers(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Refuses a list that names a hidden state twice, be it as 30 and as -1.

    Raises:
        ConfigError: It does, or the model has no such layer.
    """
    named: dict[int, int] = {}
    for layer in layers:
        position = layer_position(config, layer)
        if position in named:
            found = f"{named[position]} and {layer} are the same layer"
            raise ConfigError("model.layer", list(layers), found=found, advice="name each once")
        named[position] = layer


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList | None:
    """Returns a decoder's layers, or None where they cannot be told."""
    depth: int = decoder.config.get_text_config().num_hidden_layers
    lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)
    return next(lists, None)  # modules() yields outer modules first


def takes_token_types(decoder: PreTrainedModel | type[PreTrainedModel]) -> bool:
    """Whether a decoder takes `token_type_ids`, which of one text are all 0.

    GPT-2 adds an embedding of them, that of the token 0, to each token's: `model(**tokenizer(text))` is another vector
    than that of the tokens alone.
    """
    return TOKEN_TYPES in inspect.signature(decoder.forward).parameters


def gives_token_types(tokenizer: Any) -> bool:
    """Whether a tokenizer gives `token_type_ids` with its tokens."""
    return TOKEN_TYPES in getattr(tokenizer, "model_input_names", ())


class Backbone(DtypeKeeper):
    """A decoder that returns some layers' hidden states.

    Args:
        decoder: The decoder, without a language-model head.
        layers: Which states, in the order they are returned in: -1 is `hidden_states[-1]`, after the final norm in most
            models; 0 the embeddings; k after k decoder layers. A layer may come twice.
        has_token_types: Whether the decoder is given `token_type_ids` of 0 with its tokens, as it takes them and its
            tokenizer gives them.

    Raises:
        ConfigError: The decoder has no such layer.
    """

    def __init__(
        self, decoder: PreTrainedModel, *, layers: Sequence[int] = (-1,), has_token_types: bool = False
    ) -> None:
        super().__init__()
        for layer in layers:
            layer_position(decoder.config, layer)
        self.decoder = decoder
        self.layers = tuple(layers)
        self.has_token_types = has_token_types
        self.dimension: int = decoder.config.get_text_config().hidden_size
        self._cache_argument = cache_argument(decoder)
        self._places: tuple[Place | None, ...] | None = None
        self.keep_dtypes(decoder.dtype)

    def trace(self) -> None:
        """Finds out where the states pass; the first forward pass does it, where it was not done before.

        Raises:
            ConfigError: The decoder returns fewer hidden states than its config says.
            ModelError: It returns none, or one that is not a vector for each token.
        """
        if self._places is None:
            self._places, self.dimension = find_places(self.decoder, self.layers)

    def takes_states_within(self, modules: Sequence[nn.Module]) -> bool:
        """Whether a state passes inside one of these modules of the decoder, not at its own input or output."""
        self.trace()
        names = {name for name, module in self.decoder.named_modules() if any(module is one for one in modules)}
        inner = [place.module for place in self._places or () if place is not None]
        return any(place.startswith(f"{name}.") for place in inner for name in names)

    def token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the token types that the decoder is given with tokens, `[B, T]`, by their name; or nothing."""
        return {TOKEN_TYPES: torch.zeros_like(input_ids)} if self.has_token_types else {}

    def forward(
        self, input_ids: torch.Tensor, *, cache: Cache | None = None, others: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Returns hidden states.

        Args:
            input_ids: `[B, T]` int64, right-padded; no mask is needed, since no token sees what stands right of it.
            cache: Keys and values of the tokens that come before `input_ids`, or None.
            others: What else the decoder is given.

        Returns:
            `[B, T, D]` for each of `layers`, of the model's dtype.

        Raises:
            ModelError: The decoder does not return such states.
        """
        self.trace()
        assert self._places is not None
        cached = {"use_cache": False} if cache is None else {"use_cache": True, self._cache_argument: cache}
        inputs = {"input_ids": input_ids, **self.token_types(input_ids), **cached, **(others or {})}
        places = [place for place in self._places if place is not None]
        if len(places) < len(self._places):  # a state that passes from no module to another: the decoder alone has it
            every = all_hidden_states(self.decoder, inputs)
            return tuple(every[layer] for layer in self.layers)
        # With weights sharded by FSDP, leaving a forward pass half way would leave layers gathered.
        states = take_states(self.decoder, inputs, set(places), stop=not isinstance(self.decoder, FSDPModule))
        return tuple(states[place] for place in places)
