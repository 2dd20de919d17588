"""The backbone runs what it must and no more, and gives the states of the full model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memvec.errors import ConfigError, ModelError
from memvec.model.backbone import Backbone
from tests.helpers.families import build_family
from tests.helpers.models import ARCHITECTURES, build_model, load_backbone
from tests.helpers.refusals import refused

IDS = torch.tensor([[5, 17, 250, 33, 8, 91]])
DEPTH = 3


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """Returns the modules of the kind that makes up the full model's depth."""
    return [m for m in module.modules() if type(m).__name__.endswith(("DecoderLayer", "GPT2Block", "GPTNeoXLayer"))]


def watch(backbone: Backbone) -> list[nn.Module]:
    """Returns a list of the layers that run, which grows as they do."""
    ran: list[nn.Module] = []
    backbone.trace()  # which runs all of them, once
    for module in decoder_layers(backbone):
        module.register_forward_hook(lambda module, arguments, output: ran.append(module))
    return ran


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "lfm2", "qwen2_5_vl"])
def test_only_the_layers_below_the_one_asked_for_run(
    architecture: str, layer: int, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(model_folders(architecture), layer=layer)
    ran = watch(backbone)
    backbone(IDS)
    assert len(ran) == layer % (DEPTH + 1)


def full_states(architecture: str, layer: int) -> torch.Tensor:
    with torch.no_grad():
        states = build_model(architecture)(input_ids=IDS, output_hidden_states=True).hidden_states[layer]
    assert isinstance(states, torch.Tensor)
    return states


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_come_as_asked_for_from_one_pass(architecture: str, model_folders: Callable[[str], Path]) -> None:
    layers = (2, 0, -1, 1, 2, 3, -4)
    loaded = load_backbone(model_folders(architecture))
    backbone = Backbone(loaded.decoder, layers=layers)
    ran = watch(backbone)
    found = backbone(IDS)
    assert len(ran) == len(decoder_layers(backbone))
    assert backbone.dimension == 32
    for states, layer in zip(found, layers, strict=True):
        torch.testing.assert_close(states, full_states(architecture, layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_last_layer_is_that_of_the_full_model(tied: bool) -> None:
    """Whatever a config says: untied it is the state before the final norm."""
    model = build_model("llama")
    model.get_decoder().config.tie_last_hidden_states = tied
    with torch.no_grad():
        output = model(input_ids=IDS, output_hidden_states=True)
        (found,) = Backbone(model.get_decoder())(IDS)
        last = model.get_decoder()(input_ids=IDS).last_hidden_state
    assert torch.equal(found, output.hidden_states[-1])
    assert torch.equal(found, last) == tied


def test_calls_do_not_mix(llama: Path) -> None:
    """The next call must not see the states of the one before."""
    backbone = load_backbone(llama, layer=1)
    (first,) = backbone(IDS)
    assert backbone(IDS[:, :2])[0].shape == (1, 2, 32)
    assert torch.equal(backbone(IDS)[0], first)


def hooks_of(module: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_a_model_that_fails_is_left_as_it_was(layer: int, llama: Path) -> None:
    backbone = load_backbone(llama, layer=layer)
    before = hooks_of(backbone)
    for _ in range(2):  # the first pass looks where the states are, the second takes them
        with pytest.raises(IndexError):
            backbone(IDS + 10_000)
        assert hooks_of(backbone) == before
    assert torch.equal(backbone(IDS)[0], backbone(IDS)[0])


def test_a_state_that_no_module_has_comes_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with CPM-Ant, which cuts its prompt off its states."""
    model = build_model("llama").get_decoder()
    forward = model.forward

    def cut(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if output.hidden_states is not None:
            output["hidden_states"] = tuple(state[:, :, :] * 1 for state in output.hidden_states)
        return output

    with torch.no_grad():
        expected = model(input_ids=IDS, output_hidden_states=True).hidden_states
        monkeypatch.setattr(model, "forward", cut)
        found = Backbone(model, layers=(1, -1))(IDS)
    assert torch.equal(found[0], expected[1])
    assert torch.equal(found[1], expected[-1])


def test_a_layer_of_several_streams_is_refused_in_one_line() -> None:
    decoder = build_family("gemma3n_text").get_decoder()
    with refused(ModelError, "model.layer", 2, found="Gemma3nTextModel has there no vector for each token"):
        Backbone(decoder, layers=(2,))(IDS)


@pytest.mark.parametrize("layer", [DEPTH + 1, -DEPTH - 2, 100])
def test_a_layer_that_is_not_there_is_refused(layer: int, llama: Path) -> None:
    with refused(ConfigError, "model.layer", layer, found="the model has 3 layers", allowed="-4 to 3"):
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
    assert backbone(IDS)[0].dtype == dtype


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox", "phi3", "qwen2_5_vl"])
def test_float32_buffers_keep_their_precision_when_cast(
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


# Families of which transformers keeps some weights in float32 in a model of half precision.
KEPT = ["deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "afmoe", "rwkv"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", KEPT)
def test_a_cast_spares_what_transformers_keeps_exact(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Lightning casts a module of half precision whole; its vectors have to be those of transformers."""
    model = build_family(family)
    torch.manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "bias" in name and tensor.is_floating_point():
            tensor.data.normal_(std=0.3)  # as trained, no longer exact in half precision
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    kept = {name for name, tensor in loaded.get_decoder().state_dict().items() if tensor.dtype == torch.float32}
    with torch.no_grad():
        expected = loaded(input_ids=IDS, output_hidden_states=True).hidden_states
        backbone = load_backbone(tmp_path, dtype=dtype, layer=2).to(dtype)
        (found,) = backbone(IDS)
    assert kept or (family, dtype) == ("rwkv", torch.bfloat16)
    assert {name for name, t in backbone.decoder.state_dict().items() if t.dtype == torch.float32} == kept
    assert torch.equal(found, expected[2])


def test_what_is_not_cast_moves_all_the_same(llama: Path) -> None:
    backbone = load_backbone(llama, dtype=torch.bfloat16).to("meta", torch.float16)
    assert {tensor.device.type for tensor in [*backbone.parameters(), *backbone.buffers()]} == {"meta"}
    assert {buffer.dtype for buffer in backbone.buffers()} == {torch.float32}
