"""A model is loaded whole and safely, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MambaConfig, PreTrainedConfig, PreTrainedModel, T5Config, T5Model

from memvec.errors import ModelError
from memvec.model.backbone import Backbone
from memvec.model.checkpoint import Checkpoint, locate_model, prompt_limit
from tests.helpers.models import ARCHITECTURES, build_model, load_backbone

IDS = torch.tensor([[5, 17, 250, 33, 8, 91]])


@pytest.fixture
def llama_copy(llama: Path, tmp_path: Path) -> Path:
    """A llama folder that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def config_of(name_or_path: str | Path) -> PreTrainedConfig:
    return Checkpoint(str(name_or_path)).config


def full_states(architecture: str, layer: int) -> torch.Tensor:
    with torch.no_grad():
        states = build_model(architecture)(input_ids=IDS, output_hidden_states=True).hidden_states[layer]
    assert isinstance(states, torch.Tensor)
    return states


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
        config_of(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ['{"hidden_size": ', '{"hidden_size": 32}', '{"model_type": "unheard-of"}', None])
def test_a_folder_without_a_usable_config_is_an_error_of_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="the folder cannot be loaded") as caught:
        config_of(tmp_path)
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
        config_of(model_with_code)
    assert "\n" not in str(caught.value)
    assert not (model_with_code / "ran").exists()


def test_a_model_with_code_says_which_option_runs_it(model_with_code: Path) -> None:
    with pytest.raises(ModelError, match="trust_remote_code"):
        config_of(model_with_code)


def test_a_pickled_checkpoint_is_loaded_only_when_asked_for(llama_copy: Path) -> None:
    weights = load_file(llama_copy / "model.safetensors")
    (llama_copy / "model.safetensors").unlink()
    torch.save(weights, llama_copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the folder cannot be loaded"):
        load_backbone(llama_copy)
    backbone = Backbone(Checkpoint(str(llama_copy), use_safetensors=False).load_decoder(torch.float32))
    torch.testing.assert_close(backbone(IDS), full_states("llama", -1), rtol=1e-5, atol=1e-5)


def test_missing_weights_are_an_error_and_not_random_numbers(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 weights are missing, the first 'layers\.1\.mlp\.up_proj\.weight'"):
        load_backbone(llama_copy)


def test_a_missing_language_model_head_is_no_error(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.pop("lm_head.weight"))
    torch.testing.assert_close(load_backbone(llama_copy)(IDS), full_states("llama", -1), rtol=1e-5, atol=1e-5)


def test_weights_of_another_shape_are_an_error_of_one_line(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(ModelError, match=r"'norm.weight' is of shape \[7\], its config says \[32\]"):
        load_backbone(llama_copy)


def test_a_torn_weights_file_is_an_error_of_one_line(llama_copy: Path) -> None:
    """As an interrupted download or copy leaves it."""
    path = llama_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the folder cannot be loaded") as caught:
        load_backbone(llama_copy)
    assert "\n" not in str(caught.value)


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_an_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    with pytest.raises(ModelError, match="an encoder-decoder model; memvec needs a causal decoder"):
        Checkpoint(save(T5Model(config), tmp_path)).load_decoder(torch.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prompt_limit_is_what_the_model_was_made_for(
    architecture: str, model_folders: Callable[[str], Path]
) -> None:
    config = AutoConfig.from_pretrained(model_folders(architecture))
    expected = config.get_text_config().max_position_embeddings
    assert prompt_limit(Checkpoint(str(model_folders(architecture))).config) == expected
    if architecture != "qwen2_5_vl":  # which has its family's own limit
        assert expected == 256


@pytest.mark.parametrize("config", [MambaConfig(), PreTrainedConfig(), T5Config()])
def test_a_model_without_a_limit_has_none(config: PreTrainedConfig) -> None:
    assert prompt_limit(config) is None


def digest_of(folder: Path) -> str:
    return Checkpoint(str(folder)).digest


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
    checkpoint = Checkpoint("owner/name")
    vars(checkpoint)["config"] = config  # as the Hub gives it
    assert checkpoint.digest == "0123abc"
