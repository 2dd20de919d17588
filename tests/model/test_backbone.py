"""The backbone runs what it must and no more, and loads what is whole and safe or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5Model,
)

from memvec.errors import ConfigError, ModelError
from memvec.model.backbone import Backbone, load_backbone, load_config, locate_model, model_digest, prompt_limit
from tests.models import ARCHITECTURES, build_model

IDS = torch.tensor([[5, 17, 250, 33, 8, 91]])
DEPTH = 3


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """Returns the modules of the kind that makes up the full model's depth."""
    return [m for m in module.modules() if type(m).__name__.endswith(("DecoderLayer", "GPT2Block", "GPTNeoXLayer"))]


@pytest.fixture
def llama_copy(llama: Path, tmp_path: Path) -> Path:
    """A llama folder that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "lfm2", "qwen2_5_vl"])
def test_only_the_layers_below_the_one_asked_for_run(
    architecture: str, layer: int, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(str(model_folders(architecture)), dtype=torch.float32, layer=layer)
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
    backbone = load_backbone(str(model_folders(architecture)), dtype=torch.float32, layer=layer)
    assert backbone.dimension == 32
    torch.testing.assert_close(backbone(IDS), full_states(architecture, layer), rtol=1e-5, atol=1e-5)


def test_calls_do_not_mix(llama: Path) -> None:
    """A tapped layer keeps a state; the next call must not see the one before."""
    backbone = load_backbone(str(llama), dtype=torch.float32, layer=1)
    first = backbone(IDS)
    assert backbone(IDS[:, :2]).shape == (1, 2, 32)
    assert torch.equal(backbone(IDS), first)


@pytest.mark.parametrize("layer", [DEPTH + 1, -DEPTH - 2, 100])
def test_a_layer_that_is_not_there_is_refused(layer: int, llama: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model.layer={layer}: the model has 3 layers; allowed: -4 to 3"):
        load_backbone(str(llama), dtype=torch.float32, layer=layer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_is_no_language_model_head_and_nothing_to_train(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(str(model_folders(architecture)), dtype=torch.float32)
    assert not [name for name, _ in backbone.named_modules() if "lm_head" in name or "embed_out" in name]
    assert not [m for m in backbone.modules() if isinstance(m, nn.Linear) and m.out_features == 400]
    assert not [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert not backbone.training


def test_of_a_vision_language_model_only_the_text_path_is_kept(model_folders: Callable[[str], Path]) -> None:
    backbone = load_backbone(str(model_folders("qwen2_5_vl")), dtype=torch.float32)
    assert not [name for name, _ in backbone.named_modules() if "visual" in name or "vision" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_the_dtype_asked_for(dtype: torch.dtype, llama: Path) -> None:
    backbone = load_backbone(str(llama), dtype=dtype)
    assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}
    assert backbone(IDS).dtype == dtype


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox", "phi3", "qwen2_5_vl"])
def test_float32_buffers_keep_their_precision_when_the_module_is_cast(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    """Rotary frequencies rounded to bfloat16 are wrong positions."""
    loaded = load_backbone(str(model_folders(architecture)), dtype=torch.bfloat16)
    before = {name: buffer.clone() for name, buffer in loaded.named_buffers() if buffer.dtype == torch.float32}
    assert [name for name in before if "inv_freq" in name]
    after = dict(loaded.to(torch.bfloat16).half().named_buffers())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    for name, buffer in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], buffer)


def test_a_folder_is_located_as_it_is_and_a_hub_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate_model(str(tmp_path / "model")) == str(tmp_path / "model")
    assert locate_model("~/model") == str(tmp_path / "model")
    assert locate_model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nothing", "../nothing/here", "~/nothing", "runs/models/nothing"]
)
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=rf"^model\.name_or_path={name}: no such folder$"):
        locate_model(name)


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"is a file; allowed: a model folder, a \.gguf file, a Hub name"):
        locate_model(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no-such-model"])
def test_a_hub_model_that_cannot_be_had_is_an_error_of_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is read when the library is imported; without this every try waits for a network that is not there.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=rf"^model\.name_or_path={name}: no such folder, and the Hub gives no"
    ) as caught:
        load_config(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ['{"hidden_size": ', '{"hidden_size": 32}', '{"model_type": "unheard-of"}', None])
def test_a_folder_without_a_usable_config_is_an_error_of_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="the folder cannot be loaded") as caught:
        load_config(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def model_with_code(tmp_path: Path) -> Path:
    """A model folder whose code leaves a file `ran` when it runs."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}})
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass OwnConfig: pass\n")
    return tmp_path


def test_code_that_comes_with_a_model_does_not_run_unasked(model_with_code: Path) -> None:
    with pytest.raises(ModelError, match="comes with code of its own") as caught:
        load_config(str(model_with_code))
    assert "\n" not in str(caught.value)
    assert not (model_with_code / "ran").exists()


def test_a_model_with_code_says_which_option_runs_it(model_with_code: Path) -> None:
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_config(str(model_with_code))


def test_a_pickled_checkpoint_is_loaded_only_when_asked_for(llama_copy: Path) -> None:
    weights = load_file(llama_copy / "model.safetensors")
    (llama_copy / "model.safetensors").unlink()
    torch.save(weights, llama_copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the folder cannot be loaded"):
        load_backbone(str(llama_copy), dtype=torch.float32)
    backbone = load_backbone(str(llama_copy), dtype=torch.float32, use_safetensors=False)
    torch.testing.assert_close(backbone(IDS), full_states("llama", -1), rtol=1e-5, atol=1e-5)


def test_missing_weights_are_an_error_and_not_random_numbers(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 weights are missing, the first 'layers\.1\.mlp\.up_proj\.weight'"):
        load_backbone(str(llama_copy), dtype=torch.float32)


def test_a_missing_language_model_head_is_no_error(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.pop("lm_head.weight"))
    torch.testing.assert_close(
        load_backbone(str(llama_copy), dtype=torch.float32)(IDS), full_states("llama", -1), rtol=1e-5, atol=1e-5
    )


def test_weights_of_another_shape_are_an_error_of_one_line(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(ModelError, match=r"'norm.weight' is of shape \[7\], its config says \[32\]"):
        load_backbone(str(llama_copy), dtype=torch.float32)


def test_a_torn_weights_file_is_an_error_of_one_line(llama_copy: Path) -> None:
    """As an interrupted download or copy leaves it."""
    path = llama_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the folder cannot be loaded") as caught:
        load_backbone(str(llama_copy), dtype=torch.float32)
    assert "\n" not in str(caught.value)


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_an_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    with pytest.raises(ModelError, match="an encoder-decoder model; memvec needs a causal decoder"):
        load_backbone(save(T5Model(config), tmp_path), dtype=torch.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prompt_limit_is_what_the_model_was_made_for(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    config = AutoConfig.from_pretrained(model_folders(architecture))
    expected = config.get_text_config().max_position_embeddings
    assert prompt_limit(load_config(str(model_folders(architecture)))) == expected
    if architecture != "qwen2_5_vl":  # which has its family's own limit
        assert expected == 256


@pytest.mark.parametrize("config", [MambaConfig(), PreTrainedConfig(), T5Config()])
def test_a_model_without_a_limit_has_none(config: PreTrainedConfig) -> None:
    assert prompt_limit(config) is None


def digest_of(folder: Path) -> str:
    return model_digest(str(folder), load_config(str(folder)))


def test_the_digest_is_that_of_the_content_not_of_the_place(llama: Path, llama_copy: Path) -> None:
    assert digest_of(llama) == digest_of(llama_copy)


def test_the_digest_changes_with_one_weight(llama: Path, llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights["model.norm.weight"].__setitem__(0, 1.5))
    assert digest_of(llama) != digest_of(llama_copy)


def test_the_digest_changes_with_the_configuration(llama: Path, llama_copy: Path) -> None:
    config = json.loads((llama_copy / "config.json").read_text())
    (llama_copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert digest_of(llama) != digest_of(llama_copy)


def test_a_hub_models_commit_is_its_digest() -> None:
    config = PreTrainedConfig()
    config._commit_hash = "0123abc"
    assert model_digest("owner/name", config) == "0123abc"


def test_a_decoder_whose_layers_cannot_be_told_works_at_its_end_only(llama: Path) -> None:
    decoder = load_backbone(str(llama), dtype=torch.float32).decoder
    decoder.layers = nn.Sequential(*decoder.layers)
    decoder.layers.__class__ = type("Stack", (nn.Sequential,), {})
    Backbone(decoder)
    with pytest.raises(ModelError, match=r"its layers cannot be told; only model\.layer=-1 works"):
        Backbone(decoder, layer=1)
