"""Batches without padding: the same vectors, a model that is given back as it was, and what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from omegaconf import DictConfig
from transformers import AutoTokenizer

import memvec
from memvec import Encoder
from memvec.model.extractor import Extractor
from memvec.model.parity import ExecutionMode
from tests.helpers.families import build_family
from tests.helpers.processes import random_texts
from tests.helpers.reference import full_model, relative_errors

TEXTS = random_texts(60)
MAX_TOKENS = 512


def extractor_of(encoder: Encoder) -> Extractor:
    return encoder._loaded().extractor


# Every family there is goes through `test_families.py`.
@pytest.mark.parametrize(("architecture", "layer"), [("gemma3", -1), ("qwen2_5_vl", -1), ("llama", [1, -1])])
def test_vectors_are_those_of_padded_batches(
    architecture: str, layer: int | list[int], model_folders: Callable[[str], Path]
) -> None:
    folder = model_folders(architecture)
    with Encoder(folder, layer=layer, max_tokens=MAX_TOKENS) as encoder:
        vectors = encoder.encode(TEXTS)
        assert extractor_of(encoder).mode is ExecutionMode.UNPADDED
    with Encoder(folder, layer=layer, prefix_cache="off") as plain:
        expected = plain.encode(TEXTS)
    assert relative_errors(vectors.flatten(0, -2), expected.flatten(0, -2)).max() < 1e-5


def test_progress_counts_every_token_without_padding(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Encoder(llama, max_tokens=MAX_TOKENS) as encoder:
        encoder.encode(TEXTS)
        encoder.encode(TEXTS, progress=True)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("probe", ["auto", "off"])
def test_the_first_small_call_leaves_padding_out(probe: Literal["auto", "off"], llama: Path) -> None:
    with Encoder(llama, probe=probe) as encoder, Encoder(llama, prefix_cache="off") as plain:
        assert relative_errors(encoder.encode(TEXTS[:2]), plain.encode(TEXTS[:2])).max() < 1e-5
        assert extractor_of(encoder).mode is ExecutionMode.UNPADDED


def test_padding_stays_where_every_token_is_to_be_computed(llama: Path) -> None:
    with Encoder(llama, max_tokens=MAX_TOKENS, prefix_cache="off") as encoder:
        encoder.encode(TEXTS)
        assert extractor_of(encoder).mode is ExecutionMode.BATCHED


def test_an_attention_that_was_asked_for_is_kept(llama: Path) -> None:
    with Encoder(llama, max_tokens=MAX_TOKENS, attn_implementation="eager") as encoder:
        encoder.encode(TEXTS)
        assert extractor_of(encoder).mode is ExecutionMode.SHARED_PREFIX


@pytest.mark.parametrize("probe", ["auto", "off"])
def test_a_model_that_passes_nothing_on_keeps_padding(
    probe: Literal["auto", "off"], llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = build_family("nemotron"), AutoTokenizer.from_pretrained(llama)
    encoder = Encoder(model, tokenizer=tokenizer, max_tokens=MAX_TOKENS, probe=probe)
    with caplog.at_level("INFO", logger="memvec"):
        encoder.encode(TEXTS)
    assert extractor_of(encoder).mode is ExecutionMode.SHARED_PREFIX
    assert "padding cannot be left out (NemotronAttention is not given the rows)" in caplog.text


def test_a_lent_model_is_given_back_and_its_training_is_seen(llama: Path) -> None:
    model, tokenizer = full_model(llama).train(), AutoTokenizer.from_pretrained(llama)
    encoder = Encoder(model, tokenizer=tokenizer, max_tokens=MAX_TOKENS)
    config = copy.deepcopy(model.config)
    encoder.encode(TEXTS)
    assert extractor_of(encoder).mode is ExecutionMode.UNPADDED
    assert (model.config.to_dict(), model.config._attn_implementation) == (config.to_dict(), "sdpa")
    assert model.training
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 1.5
    after = encoder.encode(TEXTS)
    expected = Encoder(model, tokenizer=tokenizer, prefix_cache="off").encode(TEXTS)
    assert relative_errors(after, expected).max() < 1e-5


def test_a_failure_in_the_middle_gives_the_attention_back(llama: Path) -> None:
    model, tokenizer = full_model(llama), AutoTokenizer.from_pretrained(llama)
    encoder = Encoder(model, tokenizer=tokenizer, max_tokens=MAX_TOKENS)
    encoder.encode(TEXTS)

    def fail(*inputs: object) -> None:
        raise ValueError("broken layer")

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="broken layer"):
        encoder.encode(TEXTS)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert encoder.encode(TEXTS[:2]).isfinite().all()


def test_a_batch_that_does_not_fit_is_halved_without_padding(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Encoder(llama, max_tokens=MAX_TOKENS) as encoder:
        expected = encoder.encode(TEXTS)
        held = extractor_of(encoder)
        attend, rows = held.backbone.forward, []

        def small_device(input_ids: torch.Tensor, **options: object) -> object:
            rows.append(input_ids.shape[1])
            if input_ids.shape[1] > MAX_TOKENS // 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return attend(input_ids, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(held.backbone, "forward", small_device)
        vectors = encoder.encode(TEXTS)
    assert held.mode is ExecutionMode.UNPADDED
    assert max(rows) > MAX_TOKENS // 3
    assert relative_errors(vectors, expected).max() < 1e-5


def test_a_run_without_padding_says_so(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    path = write_jsonl(TEXTS)
    summary = memvec.predict(tiny_config(path, f"data.max_tokens={MAX_TOKENS}"))
    memvec.predict(tiny_config(path, "model.prefix_cache=off", output="plain"))
    assert summary.manifest["notes"]["path"] == ExecutionMode.UNPADDED.value
    assert summary.metrics["warm_up_seconds"] > 0
    vectors, expected = (memvec.load(tmp_path / name)["vector"][:] for name in ("run", "plain"))
    assert relative_errors(vectors, expected).max() < 1e-5
