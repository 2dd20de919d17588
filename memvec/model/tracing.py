"""Where in a decoder its hidden states pass, and a forward pass that takes them there.

In: a decoder. Out: for each hidden state asked for the place, a module's output or input, at which the very tensor
passes that the decoder returns in `hidden_states`; and later the states of any tokens, taken at those places.

How: a forward pass over two tokens with every module watched; a place is where the tensor is the same object, and still
holds the same numbers at the end. Why so and not by the names of layers: which tensor a family calls `hidden_states[k]`
(before a norm or after it, of which of its streams, of a block that runs several times) is the family's own business,
and a wrong guess gives vectors that look right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from memvec.errors import ConfigError, ModelError
from memvec.model.torch_internals import forward_hooks
from memvec.model.transformers_internals import forget_state_hooks, has_state_hooks

# As many as no other dimension of a state has by chance: a hidden state is `[1, TRACED_TOKENS, D]`.
TRACED_TOKENS = 2


@dataclass(frozen=True)
class Place:
    """Where a hidden state passes.

    Args:
        module: The module's name within the decoder; empty is the decoder itself.
        call: Which of the module's calls in one forward pass, from 0: some blocks run several times.
        enters: Whether it is what the module is given; else what it returns.
        key: Position or name among what is given or returned; None where that is the state itself.
    """

    module: str
    call: int
    enters: bool
    key: int | str | None

    @property
    def rank(self) -> tuple[int, int]:
        """The lower, the better: outputs of outer modules, which others neither replace nor compile."""
        return (self.enters, self.module.count(".") + 1 if self.module else 0)


class _AllTaken(Exception):  # noqa: N818 - not an error: it leaves the forward pass
    """All states that were asked for have been taken."""


# What a hook passes on: the module's name, which call it is, whether it is entered, and what it is given or returns.
Visit = Callable[[str, int, bool, Any], None]


def find_places(decoder: PreTrainedModel, layers: Sequence[int]) -> tuple[tuple[Place | None, ...], int]:
    """Finds out where a decoder's hidden states pass.

    Args:
        decoder: The decoder, on any device.
        layers: Positions in `hidden_states`.

    Returns:
        The place of each layer, None where the state passes from no module to another; and D, a state's length.

    Raises:
        ConfigError: The decoder returns fewer hidden states than asked for.
        ModelError: It returns none, or one that is not a vector for each token.
    """
    seen: dict[int, list[tuple[Place, torch.Tensor, torch.Tensor]]] = {}  # by identity: place, tensor, copy

    def keep(module: str, call: int, enters: bool, value: Any) -> None:
        for key, tensor in _tensors(value):
            if tensor.ndim == 3 and tensor.shape[:2] == (1, TRACED_TOKENS):
                seen.setdefault(id(tensor), []).append((Place(module, call, enters, key), tensor, tensor.clone()))

    input_ids = torch.zeros((1, TRACED_TOKENS), dtype=torch.long, device=decoder.device)
    with torch.no_grad(), _visited(decoder, [name for name, _ in decoder.named_modules()], keep):
        states = all_hidden_states(decoder, {"input_ids": input_ids, "use_cache": False})
    places: list[Place | None] = []
    dimensions = set()
    name = type(decoder).__name__
    for layer in layers:
        if not -len(states) <= layer < len(states):
            found, allowed = f"{name} returns {len(states)} hidden states", f"{-len(states)} to {len(states) - 1}"
            raise ConfigError("model.layer", layer, found=found, allowed=allowed)
        state = states[layer]
        if state.ndim != 3 or state.shape[:2] != (1, TRACED_TOKENS):
            shape = f"a tensor of shape {list(state.shape)} for {TRACED_TOKENS} tokens"
            found, advice = f"{name} has there no vector for each token but {shape}", "choose another layer, such as -1"
            raise ModelError("model.layer", layer, found=found, advice=advice)
        dimensions.add(state.shape[2])
        possible = [
            place
            for place, tensor, copy in seen.get(id(state), [])
            if tensor is state and torch.allclose(copy, state, rtol=0, atol=0, equal_nan=True)
        ]
        places.append(min(possible, key=lambda place: place.rank) if possible else None)
    if len(dimensions) != 1:
        raise ModelError("model.layer", list(layers), found=f"{name} has vectors of {sorted(dimensions)} numbers there")
    return tuple(places), dimensions.pop()


def take_states(
    decoder: PreTrainedModel, inputs: Mapping[str, Any], places: set[Place], *, stop: bool
) -> dict[Place, torch.Tensor]:
    """Runs a decoder and takes the states that pass at some places.

    Args:
        decoder: The decoder; it is left as it was, whatever it raises.
        inputs: Its keyword arguments.
        places: Where.
        stop: Whether the forward pass ends where the last of them has been taken.

    Returns:
        `[B, T, D]` of each place.
    """
    taken: dict[Place, torch.Tensor] = {}

    def take(module: str, call: int, enters: bool, value: Any) -> None:
        for place in places:
            if (place.module, place.call, place.enters) == (module, call, enters):
                taken[place] = value if place.key is None else value[place.key]
        if stop and len(taken) == len(places):
            raise _AllTaken

    with _visited(decoder, {place.module for place in places if place.module}, take):
        try:
            output = decoder(**inputs)
        except _AllTaken:
            return taken
    taken |= {place: output[place.key] for place in places if not place.module}
    return taken


def all_hidden_states(decoder: PreTrainedModel, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Runs a decoder, all of it, and returns all of its hidden states.

    Raises:
        ModelError: It returns none.
    """
    with _hooks_kept(decoder):
        output = decoder(**inputs, output_hidden_states=True)
    states = getattr(output, "hidden_states", None)
    if not states:
        raise ModelError(type(decoder).__name__, found="the model does not return its hidden states")
    last = getattr(output, "last_hidden_state", states[-1])
    # Some families' states are several streams, which only at the very end become one vector for each token.
    return (*states[:-1], last if last.ndim < states[-1].ndim else states[-1])


def _tensors(value: Any) -> Iterator[tuple[int | str | None, torch.Tensor]]:
    """Returns the tensors in what a module is given or returns, and the key of each there."""
    if isinstance(value, torch.Tensor):
        yield None, value
    elif isinstance(value, Mapping):
        yield from ((key, item) for key, item in value.items() if isinstance(item, torch.Tensor))
    elif isinstance(value, tuple | list):
        yield from ((at, item) for at, item in enumerate(value) if isinstance(item, torch.Tensor))


@contextmanager
def _visited(decoder: nn.Module, names: Any, visit: Visit) -> Iterator[None]:
    """Has `visit` called whenever one of these modules is entered or left."""
    calls: Counter[str] = Counter()

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visit(name, calls[name], True, {**dict(enumerate(args)), **kwargs})

    def leave(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[name] += 1
        visit(name, calls[name] - 1, False, output)

    with ExitStack() as hooks:
        for name in names:
            module = decoder.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(leave, name)).remove)
        yield


@contextmanager
def _hooks_kept(decoder: nn.Module) -> Iterator[None]:
    """Takes away the hooks with which transformers keeps hidden states, where the decoder had none before."""
    before = [(module, set(forward_hooks(module)), has_state_hooks(module)) for module in decoder.modules()]
    try:
        yield
    finally:
        for module, hooks, was_installed in before:
            for added in set(forward_hooks(module)) - hooks:
                del forward_hooks(module)[added]
            if not was_installed:
                forget_state_hooks(module)
