"""memvec's vectors against the loop it replaces, for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Phi3Config,
)

import memvec
from memvec.errors import ConfigError
from memvec.model import extractor
from memvec.model.module import HiddenStateModule
from memvec.model.parity import ExecutionMode
from memvec.predict import predict_or_plan
from tests.fixtures import TEXTS
from tests.helpers.families import LONG_ROPE, build_family
from tests.helpers.models import ARCHITECTURES, DECODER, SHARES_PREFIX, build_tokenizer
from tests.helpers.reference import full_model, reference_vectors
from tests.helpers.refusals import refused

ZH = '请用一个Token总结以下文本"{text}"：'


def relative_error(vectors: torch.Tensor, reference: torch.Tensor) -> float:
    return float(((vectors - reference).norm(dim=1) / reference.norm(dim=1)).max())


def smallest_cosine(vectors: torch.Tensor, reference: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(vectors, reference).min())


WAYS = {  # overrides, and how a model is computed whose prompts may share what they begin with
    "unpadded": ([], ExecutionMode.UNPADDED),
    "prefix": (["model.attn_implementation=eager"], ExecutionMode.SHARED_PREFIX),
    "plain": (["model.prefix_cache=off"], ExecutionMode.BATCHED),
}


# Whole runs; each family's passes are compared in test_backbone.py and test_families.py, in the everyday lane.
EVERY_DAY = {"llama", "qwen3", "gemma3", "gpt2"}
RUNS = [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", RUNS)
def test_vectors_equal_the_one_by_one_reference(
    architecture: str,
    way: str,
    model_folders: Callable[[str], Path],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    folder = model_folders(architecture)
    reference = reference_vectors(full_model(folder), AutoTokenizer.from_pretrained(folder), TEXTS, template=ZH)
    overrides, expected = WAYS[way]
    cfg = tiny_config(write_jsonl(TEXTS), *overrides, model=folder)

    summary = memvec.predict(cfg)

    vectors = memvec.load(cfg.output_dir)["vector"][:]
    assert relative_error(vectors, reference) < 1e-5
    assert smallest_cosine(vectors, reference) > 0.999999
    notes = summary.manifest["notes"]
    assert notes["path"] == (expected if architecture in SHARES_PREFIX else ExecutionMode.BATCHED).value
    assert (notes["prefix_tokens"] > 0) == (notes["path"] != ExecutionMode.BATCHED.value)


@pytest.mark.parametrize("max_tokens", [1, 64, 100_000])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_vectors_do_not_depend_on_how_rows_are_batched(batch_size: int, max_tokens: int, llama: Path) -> None:
    reference = reference_vectors(full_model(llama), AutoTokenizer.from_pretrained(llama), TEXTS, template=ZH)
    encoder = memvec.Encoder(llama, device="cpu", batch_size=batch_size, max_tokens=max_tokens)
    assert relative_error(encoder.encode(TEXTS), reference) < 1e-5


def test_vectors_do_not_depend_on_the_order_of_the_input(
    llama: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    rows = [{"id": f"m/{n}", "text": text} for n, text in enumerate(TEXTS)]
    backwards = tiny_config(write_jsonl(rows[::-1], "backwards.jsonl"), output="backwards")
    memvec.predict(backwards)
    dataset = memvec.load(backwards.output_dir)
    assert dataset["id"][:] == [row["id"] for row in rows[::-1]]
    reference = reference_vectors(full_model(llama), AutoTokenizer.from_pretrained(llama), TEXTS[::-1], template=ZH)
    assert relative_error(dataset["vector"][:], reference) < 1e-5


@pytest.mark.parametrize(("architecture", "layer"), [("llama", 0), ("llama", -2), ("gemma3", 1)])
def test_layer_means_the_position_in_hidden_states(
    architecture: str,
    layer: int,
    model_folders: Callable[[str], Path],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    folder = model_folders(architecture)
    texts = TEXTS[:5]
    reference = reference_vectors(
        full_model(folder), AutoTokenizer.from_pretrained(folder), texts, template=ZH, layer=layer
    )
    cfg = tiny_config(write_jsonl(texts), f"model.layer={layer}", model=folder)
    memvec.predict(cfg)
    assert relative_error(memvec.load(cfg.output_dir)["vector"][:], reference) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_layers_are_columns_of_one_pass(
    architecture: str,
    model_folders: Callable[[str], Path],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    folder = model_folders(architecture)
    model, tokenizer = full_model(folder), AutoTokenizer.from_pretrained(folder)
    cfg = tiny_config(write_jsonl(TEXTS), "model.layer=[2,0,-1]", "data.batch_size=5", model=folder)
    lines = memvec.predict(cfg).lines()
    dataset = memvec.load(cfg.output_dir)
    assert dataset.column_names == ["id", "text", "vector_2", "vector_0", "vector_-1", "num_tokens", "prompt_digest"]
    assert lines[0] == "entries    12 (11 different) of 32 numbers at each of 3 layers"
    for layer in (2, 0, -1):
        reference = reference_vectors(model, tokenizer, TEXTS, template=ZH, layer=layer)
        assert relative_error(dataset[f"vector_{layer}"][:], reference) < 1e-5


def test_a_list_of_one_layer_is_one_named_column(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    path = write_jsonl(TEXTS[:3])
    listed, plain = (tiny_config(path, f"model.layer={layer}", output=f"run {layer}") for layer in ("[2]", "2"))
    for cfg in (listed, plain):
        memvec.predict(cfg)
    assert torch.equal(memvec.load(listed.output_dir)["vector_2"][:], memvec.load(plain.output_dir)["vector"][:])


@pytest.mark.parametrize(
    ("layer", "value", "fields"),
    [
        ("[1,2,1]", [1, 2, 1], {"found": "1 and 1 are the same layer", "advice": "name each once"}),
        ("[3,-1]", [3, -1], {"found": "3 and -1 are the same layer", "advice": "name each once"}),
        ("[1,9]", 9, {"found": "the model has 3 layers", "allowed": "-4 to 3"}),
        ("[]", [], {"allowed": "a layer's number, or a list of at least one"}),
        ("[1,last]", [1, "last"], {"allowed": "a layer's number, or a list"}),
        ("{a: 1}", {"a": 1}, {"allowed": "a layer's number, or a list"}),
        ("true", True, {"allowed": "a layer's number, or a list"}),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_list_that_is_none_of_layers_is_refused(
    layer: str,
    value: Any,
    fields: dict[str, Any],
    dry_run: bool,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS[:2]), f"model.layer={layer}", f"dry_run={dry_run}")
    with refused(ConfigError, "model.layer", value, **fields):
        predict_or_plan(cfg)


def test_bfloat16_keeps_positions_exact(
    llama: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    """Lightning casts buffers; rotary frequencies rounded to bfloat16 would move every position."""
    texts = [text for text in TEXTS if len(text) > 20]
    exact = reference_vectors(full_model(llama), AutoTokenizer.from_pretrained(llama), texts, template=ZH)
    plain = reference_vectors(
        full_model(llama, torch.bfloat16), AutoTokenizer.from_pretrained(llama), texts, template=ZH
    )
    cfg = tiny_config(write_jsonl(texts), "trainer.precision=bf16-true", "model.tune=off")  # bfloat16 everywhere
    memvec.predict(cfg)
    vectors = memvec.load(cfg.output_dir)["vector"][:]
    assert vectors.dtype == torch.float32
    assert relative_error(vectors, exact) < 1.5 * relative_error(plain, exact)


def test_half_precision_equals_transformers_own(
    tmp_path: Path, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    """Lightning casts the whole module; transformers keeps the routers' biases of such a model in float32."""
    model = build_family("deepseek_v3")
    for name, buffer in model.named_buffers():
        if "bias" in name:
            buffer.normal_(std=0.3)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    loaded, tokenizer = full_model(folder, torch.bfloat16), AutoTokenizer.from_pretrained(folder)
    reference = reference_vectors(loaded, tokenizer, TEXTS, template=ZH)
    options = ["trainer.precision=bf16-true", "model.tune=off", "data.batch_size=1", "model.prefix_cache=off"]
    cfg = tiny_config(write_jsonl(TEXTS), *options, model=folder)
    memvec.predict(cfg)
    assert torch.equal(memvec.load(cfg.output_dir)["vector"][:], reference)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_rope_that_changes_with_length_is_right_on_both_sides(
    is_known: bool,
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether its config says so, or the probe finds out."""
    if not is_known:
        monkeypatch.setattr(extractor, "length_boundaries", lambda config: ())
    tokenizer = build_tokenizer()
    lengths = sorted(len(tokenizer(ZH.replace("{text}", text))["input_ids"]) for text in TEXTS)
    boundary = lengths[len(lengths) // 2]
    torch.manual_seed(0)
    rope = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": boundary}
    config = Phi3Config(**{**DECODER, **rope})
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reference = reference_vectors(full_model(folder), tokenizer, TEXTS, template=ZH)
    cfg = tiny_config(write_jsonl(TEXTS), model=folder)
    summary = memvec.predict(cfg)
    expected = ExecutionMode.UNPADDED if is_known else ExecutionMode.EQUAL_LENGTHS
    assert summary.manifest["notes"]["path"] == expected.value
    assert relative_error(memvec.load(cfg.output_dir)["vector"][:], reference) < 1e-5


def test_no_weights_are_left_when_lightning_moves_them(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a GPU to host memory, after each run (`Strategy.teardown`)."""
    moved: list[int] = []
    move = HiddenStateModule.cpu

    def cpu(self: HiddenStateModule) -> HiddenStateModule:
        moved.append(sum(1 for _ in self.parameters()))
        return move(self)

    monkeypatch.setattr(HiddenStateModule, "cpu", cpu)
    memvec.predict(tiny_config(write_jsonl(TEXTS)))
    assert moved == [0]


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_is_not_there_names_those_that_are(
    layer: int, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS[:2]), f"model.layer={layer}")
    with refused(ConfigError, "model.layer", layer, found="the model has 3 layers", allowed="-4 to 3"):
        memvec.predict(cfg)
