"""A LoRA adapter that is merged into the weights gives what peft computes with the adapter beside them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from memvec.errors import ExtraError, ModelError
from memvec.model.adapter import at_commit
from memvec.model.checkpoint import Checkpoint
from tests.fixtures import TEXTS
from tests.helpers.adapters import adapted_model, save_adapter
from tests.helpers.models import build_tokenizer, save_model
from tests.helpers.reference import reference_vectors
from tests.helpers.refusals import refused, refused_as

peft: Any = pytest.importorskip("peft")
ZH = '请用一个Token总结以下文本"{text}"：'
COMMIT = "0123456789" * 4


def decoder_vectors(decoder: Any, folder: Path) -> torch.Tensor:
    """Returns the vectors of a decoder, which has no head, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        prompts = [tokenizer(ZH.replace("{text}", text), return_tensors="pt")["input_ids"] for text in TEXTS[:6]]
        return torch.stack([decoder(input_ids=ids).last_hidden_state[0, -1].float() for ids in prompts])


def peft_vectors(model: Path, adapter: Path, *, auto: Any = AutoModelForCausalLM) -> torch.Tensor:
    adapted = adapted_model(model, adapter, auto=auto)
    return reference_vectors(adapted, AutoTokenizer.from_pretrained(model), TEXTS[:6], template=ZH)


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", llama)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"use_dora": True}),
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"layers_to_transform": [1]}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        ("llama", {"modules_to_save": ["embed_tokens"]}),
        ("qwen2", {"bias": "all"}),
        ("gpt2", {"target_modules": ["c_attn"]}),
        ("gemma3", {}),
        ("qwen3_moe", {"target_parameters": ["mlp.experts.down_proj"]}),
        ("qwen2_5_vl", {"target_modules": ["q_proj"]}),
    ],
)
def test_merged_it_gives_what_peft_computes(
    architecture: str, options: dict[str, Any], model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    model = model_folders(architecture)
    auto = AutoModelForImageTextToText if architecture == "qwen2_5_vl" else AutoModelForCausalLM
    adapter = save_adapter(tmp_path, model, auto=auto, **options)
    decoder = Checkpoint(str(model), adapter=str(adapter)).load_decoder(torch.float32)
    vectors, expected = decoder_vectors(decoder, model), peft_vectors(model, adapter, auto=auto)
    assert float(((vectors - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-5
    plain = decoder_vectors(Checkpoint(str(model)).load_decoder(torch.float32), model)
    assert float(((plain - expected).norm(dim=1) / expected.norm(dim=1)).min()) > 1e-2
    assert {type(module) for module in decoder.modules()} == {
        type(module) for module in Checkpoint(str(model)).load_decoder(torch.float32).modules()
    }
    assert not any(weight.requires_grad for weight in decoder.parameters())


def test_merged_weights_keep_their_dtype(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path, llama, target_modules=["q_proj", "lm_head"], modules_to_save=["embed_tokens"])
    model = Checkpoint(str(llama), adapter=str(adapter)).load_language_model(torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_an_adapter_of_a_model_without_its_head_fits_too(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama, auto=AutoModel, task_type="FEATURE_EXTRACTION")
    expected = decoder_vectors(adapted_model(llama, adapter, auto=AutoModel), llama)
    for folder in (llama, tmp_path / "headless"):
        if folder != llama:
            AutoModel.from_pretrained(llama).save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
        decoder = Checkpoint(str(folder), adapter=str(adapter)).load_decoder(torch.float32)
        torch.testing.assert_close(decoder_vectors(decoder, llama), expected, rtol=1e-5, atol=1e-5)


def test_embeddings_that_the_head_shares_are_changed_alone(llama: Path, tmp_path: Path) -> None:
    tied = AutoModelForCausalLM.from_pretrained(llama, tie_word_embeddings=True)
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    build_tokenizer().save_pretrained(tmp_path / "tied")
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "tied", target_modules=["embed_tokens"])
    checkpoint = Checkpoint(str(tmp_path / "tied"), adapter=str(adapter))
    input_ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = adapted_model(tmp_path / "tied", adapter)(input_ids=input_ids).logits
        found = checkpoint.load_language_model(torch.float32)(input_ids=input_ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_identifies_the_weights_names_the_adapter(llama: Path, adapter: Path, tmp_path: Path) -> None:
    alone, both = Checkpoint(str(llama)).identity, Checkpoint(str(llama), adapter=str(adapter)).identity
    assert list(alone) == ["model"]
    assert both["model"] == alone["model"]
    weights = load_file(adapter / "adapter_model.safetensors")
    adapter.rename(tmp_path / "renamed")
    assert Checkpoint(str(llama), adapter=str(tmp_path / "renamed")).identity == both
    save_file({name: weight * 2 for name, weight in weights.items()}, tmp_path / "renamed/adapter_model.safetensors")
    assert Checkpoint(str(llama), adapter=str(tmp_path / "renamed")).identity != both


def test_an_adapter_beside_a_models_weights_is_left_alone(llama: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    save_adapter(model, llama)
    assert {"config.json", "adapter_config.json"} < {path.name for path in model.iterdir()}
    plain = decoder_vectors(Checkpoint(str(llama)).load_decoder(torch.float32), llama)
    assert torch.equal(decoder_vectors(Checkpoint(str(model)).load_decoder(torch.float32), llama), plain)
    merged = Checkpoint(str(model), adapter=str(model)).load_decoder(torch.float32)
    torch.testing.assert_close(decoder_vectors(merged, llama), peft_vectors(llama, model), rtol=1e-5, atol=1e-5)


def test_an_adapter_of_the_hub_is_taken_at_its_commit(
    llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of the Hub's cache, as it lies on disk."""
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    adapter.rename(repository / "snapshots" / COMMIT)
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE", "default_cache_path"):
            if hasattr(sys.modules[module], name):
                monkeypatch.setattr(f"{module}.{name}", str(tmp_path / "hub"))
    for name in ("owner/name", f"owner/name@{COMMIT}"):
        checkpoint = Checkpoint(str(llama), adapter=name)
        assert checkpoint.identity["adapter"] == COMMIT
        checkpoint.load_decoder(torch.float32)
    assert at_commit("owner/name@main", COMMIT) == f"owner/name@{COMMIT}"
    assert at_commit("a/folder", "0123456789abcdef" * 4) == "a/folder"
    with refused(ModelError, "model.adapter", "owner/other", found="no such folder, and the Hub gives no such adapter"):
        Checkpoint(str(llama), adapter="owner/other").identity  # noqa: B018


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "found", "allowed"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "a PROMPT_TUNING adapter, which cannot be merged into the weights", "LORA"),
        ({"peft_type": None}, "a None adapter, which cannot be merged", "LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "its megatron_config is set", ""),
        ({"layer_replication": [[0, 3], [0, 3]]}, "its layer_replication is set, which is not supported", ""),
        ({"of_the_future": 3}, "its of_the_future is set", ""),
        ({"init_lora_weights": "pissa"}, "its init_lora_weights is 'pissa', which changed the model's own weights", ""),
        ({"r": 10**9}, "a rank of 1000000000", "1 to 65,536"),
        ({"rank_pattern": {"q_proj": "4"}}, "a rank of '4'", "1 to 65,536"),
    ],
)
def test_what_cannot_be_merged_is_said_early(
    fields: dict[str, Any], found: str, allowed: str, llama: Path, adapter: Path
) -> None:
    edit(adapter, **fields)
    with refused(ModelError, "model.adapter", str(adapter), found=found, allowed=allowed):
        Checkpoint(str(llama), adapter=str(adapter)).config  # noqa: B018
    assert "antigravity" not in sys.modules


def damaged(how: str, adapter: Path) -> None:
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "broken config":
        config.write_text("{")
    elif how == "no object":
        config.write_text("[1]")
    elif how == "no weights":
        weights.unlink()
    elif how == "pickled":
        torch.save(load_file(weights), adapter / "adapter_model.bin")
        weights.unlink()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("no config", ModelError(found="no adapter there", allowed="a folder with adapter_config.json")),
        ("broken config", ModelError("adapter_config.json", found="Expecting property name")),
        ("no object", ModelError("adapter_config.json", found="holds list", allowed="a JSON object")),
        ("no weights", ModelError(found="holds no weights", allowed="adapter_model.safetensors")),
        (
            "pickled",
            ModelError(found="only pickled weights (adapter_model.bin)", advice="model.use_safetensors=false allows"),
        ),
    ],
)
def test_a_folder_that_is_no_adapter_is_said_early(how: str, expected: ModelError, llama: Path, adapter: Path) -> None:
    damaged(how, adapter)
    with refused_as(expected):
        Checkpoint(str(llama), adapter=str(adapter)).config  # noqa: B018


def test_pickled_weights_are_loaded_where_that_is_allowed(llama: Path, adapter: Path) -> None:
    expected = peft_vectors(llama, adapter)
    damaged("pickled", adapter)
    decoder = Checkpoint(str(llama), adapter=str(adapter), use_safetensors=False).load_decoder(torch.float32)
    torch.testing.assert_close(decoder_vectors(decoder, llama), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["./nothing", "~/nothing-there", "/a/b/c", "a/b/c"])
def test_a_folder_that_is_not_there_is_said(name: str, llama: Path) -> None:
    with refused(ModelError, "model.adapter", name, found="no such folder"):
        Checkpoint(str(llama), adapter=name).config  # noqa: B018


@pytest.mark.parametrize(
    ("architecture", "options", "said"),
    [
        ("nearly_free", {}, "size mismatch for base_model.model.model.layers.0"),
        ("gpt2", {"target_modules": ["c_attn"]}, "Target modules {'c_attn'} not found"),
    ],
)
def test_an_adapter_of_another_model_is_said(
    architecture: str, options: dict[str, Any], said: str, model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path, model_folders(architecture), **options)
    with refused(ModelError, "model.adapter", str(adapter), found=said) as caught:
        Checkpoint(str(model_folders("llama")), adapter=str(adapter)).load_decoder(torch.float32)
    assert caught.value.found.startswith("does not fit the model, or cannot be merged: ")


def test_weights_without_a_place_and_missing_ones_are_said(llama: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name.replace("layers.0", "layers.7"): weights[name].clone()}, path)
    with refused(ModelError, "model.adapter", found=re.compile(r"1 weights have no place in it, such as .*layers\.7")):
        Checkpoint(str(llama), adapter=str(adapter)).load_decoder(torch.float32)
    save_file({other: weight for other, weight in weights.items() if other != name}, path)
    with refused(ModelError, "model.adapter", found=re.compile(r"1 weights are missing, such as .*layers\.0")):
        Checkpoint(str(llama), adapter=str(adapter)).load_decoder(torch.float32)
    save_file({**weights, name: torch.full_like(weights[name], torch.nan)}, path)
    with refused(ModelError, "model.adapter", found="NaN"):
        Checkpoint(str(llama), adapter=str(adapter)).load_decoder(torch.float32)
    path.write_bytes(b"no safetensors")
    with refused(ModelError, "model.adapter", found="does not fit the model, or cannot be merged: "):
        Checkpoint(str(llama), adapter=str(adapter)).load_decoder(torch.float32)


def test_another_name_of_the_base_model_is_a_line_of_the_log(
    llama: Path, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "memvec")
    Checkpoint(str(llama), adapter=str(adapter)).config  # noqa: B018
    assert caplog.messages == []
    edit(adapter, base_model_name_or_path="owner/other")
    Checkpoint(str(llama), adapter=str(adapter)).config  # noqa: B018
    assert caplog.messages == [f"{adapter}: was made for 'owner/other', and is merged into {llama}"]


def test_peft_that_is_not_installed_is_said(llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    install = "pip install 'memvec[adapter]'"
    with refused(ExtraError, "model.adapter", found="needs peft, which is missing", advice=install):
        Checkpoint(str(llama), adapter=str(adapter)).config  # noqa: B018
