"""The prefix that prompts share, computed once, gives the states of the whole prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaModel, PreTrainedConfig, PreTrainedModel, RwkvConfig, RwkvModel
from transformers.cache_utils import Cache

from memvec.model.backbone import Backbone
from memvec.model.prefix import SharedPrefix, compute_prefix
from tests.helpers.models import ARCHITECTURES, SHARES_PREFIX, WINDOW, load_backbone

BATCH, TOKENS = 4, 24


@pytest.fixture
def backbone_of(model_folders: Callable[[str], Path]) -> Callable[..., Backbone]:
    def load(architecture: str, **options: object) -> Backbone:
        return load_backbone(model_folders(architecture), **options)  # type: ignore[arg-type]

    return load


def prompts(prefix_length: int) -> torch.Tensor:
    """Returns `[BATCH, TOKENS]` token ids whose first `prefix_length` columns are equal."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 400, (BATCH, TOKENS), generator=generator)
    input_ids[:, :prefix_length] = input_ids[0, :prefix_length]
    return input_ids


def shared(backbone: Backbone, input_ids: torch.Tensor) -> SharedPrefix:
    prefix = compute_prefix(backbone.decoder, input_ids)
    assert isinstance(prefix, SharedPrefix), prefix
    return prefix


def states(cache: Cache) -> list[torch.Tensor]:
    return [state.clone() for layer in cache.layers for state in (layer.keys, layer.values)]


# Shorter than the sliding window, just as long, one longer, and much longer.
@pytest.mark.parametrize("prefix_length", [1, WINDOW - 1, WINDOW, WINDOW + 1, TOKENS - 1])
@pytest.mark.parametrize("architecture", sorted(SHARES_PREFIX))
@torch.no_grad()
def test_states_after_a_prefix_are_those_of_the_whole_prompt(
    architecture: str, prefix_length: int, backbone_of: Callable[..., Backbone]
) -> None:
    backbone, input_ids = backbone_of(architecture), prompts(prefix_length)
    prefix = shared(backbone, input_ids[0, :prefix_length])
    assert len(prefix) == prefix_length
    whole = torch.cat([backbone(row[None])[0] for row in input_ids])
    (rest,) = backbone(input_ids[:, prefix_length:], cache=prefix.expand(BATCH))
    torch.testing.assert_close(rest, whole[:, prefix_length:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2, -2])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@torch.no_grad()
def test_a_lower_layer_shares_its_prefix_too(
    architecture: str, layer: int, backbone_of: Callable[..., Backbone]
) -> None:
    backbone, input_ids = backbone_of(architecture, layer=layer), prompts(WINDOW)
    prefix = shared(backbone, input_ids[0, :WINDOW])
    (rest,) = backbone(input_ids[:, WINDOW:], cache=prefix.expand(BATCH))
    torch.testing.assert_close(rest, backbone(input_ids)[0][:, WINDOW:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mistral"])
@torch.no_grad()
def test_batches_do_not_reach_the_shared_prefix(architecture: str, backbone_of: Callable[..., Backbone]) -> None:
    backbone, input_ids = backbone_of(architecture), prompts(WINDOW)
    prefix = shared(backbone, input_ids[0, :WINDOW])
    before = states(prefix.cache)
    (first,) = backbone(input_ids[:, WINDOW:], cache=prefix.expand(BATCH))
    backbone(input_ids[:2, WINDOW : WINDOW + 3], cache=prefix.expand(2))
    (again,) = backbone(input_ids[:, WINDOW:], cache=prefix.expand(BATCH))
    assert torch.equal(first, again)
    after = states(prefix.cache)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert {state.shape[0] for state in after} == {1}


@torch.no_grad()
def test_expanding_copies_nothing(backbone_of: Callable[..., Backbone]) -> None:
    prefix = shared(backbone_of("llama"), prompts(WINDOW)[0, :WINDOW])
    expanded = prefix.expand(1000)
    for own, common in zip(expanded.layers, prefix.cache.layers, strict=True):
        assert own.keys.shape[0] == own.values.shape[0] == 1000
        assert own.keys.data_ptr() == common.keys.data_ptr()
        assert own.values.data_ptr() == common.values.data_ptr()


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - SHARES_PREFIX))
@torch.no_grad()
def test_a_hybrid_model_says_which_layers_stand_in_the_way(
    architecture: str, backbone_of: Callable[..., Backbone]
) -> None:
    assert compute_prefix(backbone_of(architecture).decoder, torch.tensor([3, 4, 5])) == (
        "a layer keeps a state that is not keys and values per token (conv)"
    )


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (MambaModel, MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, state_size=4)),
        (RwkvModel, RwkvConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2)),
    ],
)
@torch.no_grad()
def test_a_recurrent_model_says_why_it_cannot_share(kind: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    reason = compute_prefix(kind(config).eval(), torch.tensor([3, 4, 5]))
    assert isinstance(reason, str)
    assert "keys and values" in reason
