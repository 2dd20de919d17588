"""A model is loaded whole and safely, or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertLMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5Model,
)

from memvec.errors import ModelError
from memvec.model.backbone import Backbone
from memvec.model.checkpoint import Checkpoint, locate_model
from tests.helpers.models import MODEL_SIZE, build_model, build_tokenizer, load_backbone
from tests.helpers.refusals import refused

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
    with refused(ModelError, "model.name_or_path", name, found=re.compile("^no such folder$")):
        locate_model(name)


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with refused(
        ModelError, "model.name_or_path", found="is a file", allowed="a model folder, a .gguf file, a Hub name"
    ):
        locate_model(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no-such-model"])
def test_a_hub_model_that_cannot_be_had_is_an_error_of_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is read when the library is imported; without this every try waits for a network that is not there.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with refused(ModelError, "model.name_or_path", name, found="no such folder, and the Hub gives no") as caught:
        config_of(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ['{"hidden_size": ', '{"hidden_size": 32}', '{"model_type": "unheard-of"}', None])
def test_a_folder_without_a_usable_config_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with refused(ModelError, "model.name_or_path", found="the folder cannot be loaded") as caught:
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
    with refused(ModelError, "model.name_or_path", found="comes with code of its own") as caught:
        config_of(model_with_code)
    assert "\n" not in str(caught.value)
    assert not (model_with_code / "ran").exists()


def test_a_model_with_code_says_which_option_runs_it(model_with_code: Path) -> None:
    with refused(ModelError, "model.name_or_path", advice="model.trust_remote_code=true lets that run"):
        config_of(model_with_code)


def test_a_pickled_checkpoint_is_loaded_only_when_asked_for(llama_copy: Path) -> None:
    weights = load_file(llama_copy / "model.safetensors")
    (llama_copy / "model.safetensors").unlink()
    torch.save(weights, llama_copy / "pytorch_model.bin")
    found = "only pickled weights (pytorch_model.bin)"
    with refused(ModelError, "model.name_or_path", found=found, advice="model.use_safetensors=false allows"):
        load_backbone(llama_copy)
    backbone = Backbone(Checkpoint(str(llama_copy), use_safetensors=False).load_decoder(torch.float32))
    torch.testing.assert_close(backbone(IDS)[0], full_states("llama", -1), rtol=1e-5, atol=1e-5)


def test_missing_weights_are_an_error_and_not_random_numbers(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with refused(
        ModelError, "model.name_or_path", found="1 weights are missing, the first 'layers.1.mlp.up_proj.weight'"
    ):
        load_backbone(llama_copy)


def test_a_missing_language_model_head_is_no_error(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.pop("lm_head.weight"))
    torch.testing.assert_close(load_backbone(llama_copy)(IDS)[0], full_states("llama", -1), rtol=1e-5, atol=1e-5)


def test_weights_of_another_shape_are_an_error_of_one_line(llama_copy: Path) -> None:
    edit_weights(llama_copy, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with refused(ModelError, "model.name_or_path", found="'norm.weight' is of shape [7], its config says [32]"):
        load_backbone(llama_copy)


def test_a_torn_weights_file_is_an_error_of_one_line(llama_copy: Path) -> None:
    """As an interrupted download or copy leaves it."""
    path = llama_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with refused(ModelError, "model.name_or_path", found="the folder cannot be loaded") as caught:
        load_backbone(llama_copy)
    assert "\n" not in str(caught.value)


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_an_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    with refused(
        ModelError, "model.name_or_path", found="an encoder-decoder model (t5)", advice="memvec needs a causal decoder"
    ):
        Checkpoint(save(T5Model(config), tmp_path)).load_decoder(torch.float32)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "found", "allowed"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0", "an integer of at least 1"),
        ({"num_key_value_heads": -2}, "num_key_value_heads=-2", "an integer of at least 1"),
        ({"num_hidden_layers": "x"}, "num_hidden_layers='x'", "an integer of at least 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000", "1 to 10,000"),
        ({"text_config": {"hidden_size": 0.5}}, "hidden_size=0.5", "an integer of at least 1"),
        ({"model_type": "lla\nma"}, r"model_type='lla\nma'", "the name of an architecture"),
        ({"model_type": ["llama"]}, "model_type=['llama']", "the name of an architecture"),
        ({"rms_norm_eps": "small"}, "Field 'rms_norm_eps' expected float, got str", ""),
        ({"dtype": "float99"}, "has no attribute 'float99'", ""),
    ],
)
def test_a_config_that_no_model_can_have_is_named(
    fields: dict[str, Any], found: str, allowed: str, llama_copy: Path
) -> None:
    """At once: nothing of the weights is read."""
    edit_config(llama_copy, **fields)
    (llama_copy / "model.safetensors").write_bytes(b"not read")
    with refused(ModelError, "model.name_or_path", str(llama_copy), found=found, allowed=allowed) as caught:
        config_of(llama_copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"hidden_act": "nope"}, {"rope_parameters": {"rope_type": "nope"}}])
def test_what_only_loading_finds_is_an_error_of_one_line(fields: dict[str, Any], llama_copy: Path) -> None:
    edit_config(llama_copy, **fields)
    with refused(ModelError, "model.name_or_path", found="the folder cannot be loaded: KeyError: 'nope'"):
        load_backbone(llama_copy)


@pytest.mark.parametrize("content", ["[1]", "7", "[" * 100_000])
def test_a_config_that_is_no_object_is_an_error_of_one_line(content: str, llama_copy: Path) -> None:
    (llama_copy / "config.json").write_text(content)
    with refused(ModelError, "model.name_or_path", str(llama_copy)) as caught:
        config_of(llama_copy)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "owner/\x1b[31mbase"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"lora_A": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    build_tokenizer().save_pretrained(tmp_path)
    for use in (lambda it: it.config, lambda it: it.load_tokenizer(), lambda it: it.load_decoder(torch.float32)):
        with refused(ModelError, "model.name_or_path", str(tmp_path), advice="name both") as caught:
            use(Checkpoint(str(tmp_path)))  # type: ignore[no-untyped-call]
        base = r"owner/\x1b[31mbase"
        assert f"a LORA adapter of '{base}', without that model's weights; name both: " in str(caught.value)
        assert str(caught.value).endswith(f": model.name_or_path={base} model.adapter={tmp_path}")


def test_a_model_with_an_adapter_beside_its_weights_is_a_model(llama_copy: Path) -> None:
    (llama_copy / "adapter_config.json").write_text("{}")
    assert config_of(llama_copy).model_type == "llama"


@pytest.mark.parametrize("edit", ["{", "[]", "{}"])
def test_a_damaged_adapter_is_an_error_of_one_line(edit: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(edit)
    with refused(ModelError, re.compile(r"/adapter_config\.json$|^model\.name_or_path$")) as caught:
        config_of(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_an_encoder_is_told_from_a_decoder(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with refused(ModelError, "model.name_or_path", found=f"an encoder ({kind}), in which a token sees those behind it"):
        config_of(tmp_path)


def test_a_bert_that_is_a_decoder_is_one(tmp_path: Path) -> None:
    config = BertConfig(**MODEL_SIZE, num_attention_heads=4, num_hidden_layers=1, is_decoder=True)
    save(BertLMHeadModel(config), tmp_path)
    assert config_of(tmp_path).is_decoder


def test_a_model_of_images_is_no_language_model(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with refused(ModelError, "model.name_or_path", found="no language model (vit)"):
        config_of(tmp_path)


def test_weights_that_are_not_there_are_named_early(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").unlink()
    with refused(
        ModelError, "model.name_or_path", llama_copy, found="the folder holds no weights", allowed="*.safetensors"
    ):
        config_of(llama_copy)


def test_a_part_of_the_weights_that_is_not_there_is_named(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").rename(llama_copy / "model-00001-of-00003.safetensors")
    index = llama_copy / "model.safetensors.index.json"
    files = {f"weight {n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    index.write_text(json.dumps({"weight_map": files}))
    with refused(
        ModelError,
        "model.name_or_path",
        llama_copy,
        found="2 of 3 files of weights are missing, such as model-00002-of-00003.safet",
    ):
        config_of(llama_copy)
    for content in ("", "[]", '{"weight_map": 7}', '{"weight_map": {"a": 7}}'):
        index.write_text(content)
        with refused(ModelError, index, found="no index of a model's weights"):
            config_of(llama_copy)


def test_a_folder_without_a_tokenizer_is_named(llama_copy: Path) -> None:
    """Of some classes transformers makes a tokenizer that knows no word."""
    for file in llama_copy.glob("tokenizer*"):
        file.unlink()
    (llama_copy / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with refused(
        ModelError, "model.name_or_path", llama_copy, found="the folder holds no tokenizer", allowed="a tokenizer.json"
    ):
        Checkpoint(str(llama_copy)).load_tokenizer()


@pytest.mark.parametrize("content", ["{}", "[1]", "", '{"model": 1}'])
def test_a_damaged_tokenizer_is_an_error_of_one_line(content: str, llama_copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        folder = Path(shutil.copytree(llama_copy, llama_copy.parent / name))
        (folder / name).write_text(content)
        if name == "tokenizer_config.json" and content.startswith("{"):
            continue  # which leaves much to its defaults
        with refused(ModelError, "model.name_or_path") as caught:
            Checkpoint(str(folder)).load_tokenizer()
        assert "\n" not in str(caught.value)


def test_a_tokenizer_of_a_larger_model_is_refused(llama_copy: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["larger"])
    tokenizer.save_pretrained(llama_copy)
    with refused(
        ModelError, "model.name_or_path", found="tokens that the model lacks: 'larger' is number 400, the model has 400"
    ):
        Checkpoint(str(llama_copy)).load_tokenizer()


def test_a_padding_token_without_an_embedding_does_no_harm(llama_copy: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(llama_copy)
    assert Checkpoint(str(llama_copy)).load_tokenizer().pad_token_id == 400


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
