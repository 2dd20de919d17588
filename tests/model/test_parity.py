"""The probe that compares the fast path with the plain one before it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath

import pytest
import torch
from omegaconf import DictConfig
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import memvec
from memvec.model import prefix
from memvec.model.parity import TOLERANCE, Path, choose_path, relative_error
from tests.conftest import TEXTS
from tests.helpers.models import MODEL_SIZE, build_tokenizer

ZH = '请用一个Token总结以下文本"{text}"：'


def test_the_fastest_path_that_agrees_is_taken() -> None:
    exact = torch.ones(3, 4)
    for wrong, expected in [
        ([], Path.SHARED_PREFIX),
        ([Path.SHARED_PREFIX], Path.BATCHED),
        ([Path.SHARED_PREFIX, Path.BATCHED], Path.ONE_BY_ONE),
        ([Path.BATCHED], Path.SHARED_PREFIX),
    ]:
        path, _ = choose_path(
            lambda path, wrong=wrong: exact * (1.5 if path in wrong else 1),  # type: ignore[misc]
            first=Path.SHARED_PREFIX,
            dtype=torch.float32,
        )
        assert path is expected


def test_an_error_that_another_process_has_found_decides_too() -> None:
    path, errors = choose_path(
        lambda path: torch.ones(3, 4), first=Path.BATCHED, dtype=torch.float32, agree=lambda error: max(error, 0.5)
    )
    assert (path, errors) == (Path.ONE_BY_ONE, {Path.BATCHED.value: 0.5})


def test_a_single_row_that_differs_is_enough() -> None:
    vectors = torch.ones(5, 4)
    vectors[3, 2] += 0.01
    assert relative_error(vectors, torch.ones(5, 4)) == pytest.approx(0.005)
    assert relative_error(vectors, torch.ones(5, 4)) > TOLERANCE[torch.float32]


def test_nan_along_one_path_only_is_a_difference() -> None:
    broken = torch.ones(2, 4)
    broken[0, 0] = torch.nan
    assert relative_error(broken, torch.ones(2, 4)) == torch.inf
    assert relative_error(torch.ones(2, 4), broken) == torch.inf
    assert relative_error(broken[:1], broken[:1]) == 0.0


@pytest.fixture(scope="module")
def bidirectional(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    """A model in which every token sees every other: padding and a shared prefix are both wrong."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(**MODEL_SIZE, num_attention_heads=4, num_hidden_layers=3, initializer_range=0.2)
    ).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_that_is_not_causal_is_computed_one_by_one_and_right(
    bidirectional: FilePath,
    write_jsonl: Callable[..., FilePath],
    tiny_config: Callable[..., DictConfig],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), model=bidirectional)
    with caplog.at_level("WARNING", logger="memvec"):
        summary = memvec.predict(cfg)
    assert summary.manifest["notes"]["path"] == "one by one"
    assert "parity probe" in caplog.text
    assert any("one by one" in line for line in summary.lines())
    model, tokenizer = AutoModel.from_pretrained(bidirectional).eval(), AutoTokenizer.from_pretrained(bidirectional)
    with torch.no_grad():
        expected = torch.stack(
            [
                model(**tokenizer(ZH.replace("{text}", text), return_tensors="pt")).last_hidden_state[0, -1]
                for text in TEXTS
            ]
        )
    torch.testing.assert_close(memvec.load(cfg.output_dir)["vector"][:], expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_that_is_wrong_is_not_used(
    write_jsonl: Callable[..., FilePath],
    tiny_config: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a change in the library's cache would do: keys that no longer belong to the prefix."""
    right = tiny_config(write_jsonl(TEXTS), output="right")
    memvec.predict(right)
    expand = prefix.SharedPrefix.expand

    def shuffled(self: prefix.SharedPrefix, batch_size: int) -> object:
        cache = expand(self, batch_size)
        for layer in cache.layers:
            layer.keys = layer.keys.flip(2)  # type: ignore[union-attr]
        return cache

    monkeypatch.setattr(prefix.SharedPrefix, "expand", shuffled)
    cfg = tiny_config(write_jsonl(TEXTS), output="probed")
    summary = memvec.predict(cfg)
    assert summary.manifest["notes"]["path"] == "batched"
    torch.testing.assert_close(memvec.load(cfg.output_dir)["vector"][:], memvec.load(right.output_dir)["vector"][:])


def test_the_probe_can_be_turned_off(
    write_jsonl: Callable[..., FilePath], tiny_config: Callable[..., DictConfig]
) -> None:
    summary = memvec.predict(tiny_config(write_jsonl(TEXTS), "model.probe=off"))
    assert summary.manifest["notes"]["probe_relative_error"] == {}
