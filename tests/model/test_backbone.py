"""The backbone runs what it must and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from memvec.errors import ConfigError, ModelError
from memvec.model.backbone import Backbone
from tests.helpers.models import ARCHITECTURES, build_model, load_backbone

IDS = torch.tensor([[5, 17, 250, 33, 8, 91]])
DEPTH = 3


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """Returns the modules of the kind that makes up the full model's depth."""
    return [m for m in module.modules() if type(m).__name__.endswith(("DecoderLayer", "GPT2Block", "GPTNeoXLayer"))]


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "lfm2", "qwen2_5_vl"])
def test_only_the_layers_below_the_one_asked_for_run(
    architecture: str, layer: int, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(model_folders(architecture), layer=layer)
    ran: list[nn.Module] = []
    for module in decoder_layers(backbone):
        module.register_forward_hook(lambda module, arguments, output: ran.append(module))
    backbone(IDS)
    position = layer % (DEPTH + 1)
    assert len(ran) == len(decoder_layers(backbone)) == max(position, 1)  # a decoder cannot run without any layer


def full_states(architecture: str, layer: int) -> torch.Tensor:
    with torch.no_grad():
        states = build_model(architecture)(input_ids=IDS, output_hidden_states=True).hidden_states[layer]
    assert isinstance(states, torch.Tensor)
    return states


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layers_states_are_those_of_the_full_model(
    architecture: str, layer: int, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(model_folders(architecture), layer=layer)
    assert backbone.dimension == 32
    torch.testing.assert_close(backbone(IDS), full_states(architecture, layer), rtol=1e-5, atol=1e-5)


def test_calls_do_not_mix(llama: Path) -> None:
    """A tapped layer keeps a state; the next call must not see the one before."""
    backbone = load_backbone(llama, layer=1)
    first = backbone(IDS)
    assert backbone(IDS[:, :2]).shape == (1, 2, 32)
    assert torch.equal(backbone(IDS), first)


@pytest.mark.parametrize("layer", [DEPTH + 1, -DEPTH - 2, 100])
def test_a_layer_that_is_not_there_is_refused(layer: int, llama: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model.layer={layer}: the model has 3 layers; allowed: -4 to 3"):
        load_backbone(llama, layer=layer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_is_no_language_model_head_and_nothing_to_train(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(model_folders(architecture))
    assert not [name for name, _ in backbone.named_modules() if "lm_head" in name or "embed_out" in name]
    assert not [m for m in backbone.modules() if isinstance(m, nn.Linear) and m.out_features == 400]
    assert not [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert not backbone.training


def test_of_a_vision_language_model_only_the_text_path_is_kept(model_folders: Callable[[str], Path]) -> None:
    backbone = load_backbone(model_folders("qwen2_5_vl"))
    assert not [name for name, _ in backbone.named_modules() if "visual" in name or "vision" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_the_dtype_asked_for(dtype: torch.dtype, llama: Path) -> None:
    backbone = load_backbone(llama, dtype=dtype)
    assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}
    assert backbone(IDS).dtype == dtype


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox", "phi3", "qwen2_5_vl"])
def test_float32_buffers_keep_their_precision_when_the_module_is_cast(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    """Rotary frequencies rounded to bfloat16 are wrong positions."""
    loaded = load_backbone(model_folders(architecture), dtype=torch.bfloat16)
    before = {name: buffer.clone() for name, buffer in loaded.named_buffers() if buffer.dtype == torch.float32}
    assert [name for name in before if "inv_freq" in name]
    after = dict(loaded.to(torch.bfloat16).half().named_buffers())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    for name, buffer in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], buffer)


def test_a_decoder_whose_layers_cannot_be_told_works_at_its_end_only(llama: Path) -> None:
    decoder = load_backbone(llama).decoder
    decoder.layers = nn.Sequential(*decoder.layers)
    decoder.layers.__class__ = type("Stack", (nn.Sequential,), {})
    Backbone(decoder)
    with pytest.raises(ModelError, match=r"its layers cannot be told; only model\.layer=-1 works"):
        Backbone(decoder, layer=1)
