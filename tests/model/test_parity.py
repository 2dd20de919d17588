"""The probe that compares the fast ways with the plain one before they are trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import AutoModel, AutoTokenizer

import memvec
from memvec.model import prefix
from memvec.model.parity import TOLERANCE, ExecutionMode, choose_mode, parts_of_batch, relative_error
from tests.fixtures import TEXTS
from tests.helpers.models import save_bidirectional

ZH = '请用一个Token总结以下文本"{text}"：'
UNPADDED, SHARED, BATCHED, EQUAL, ONE = ExecutionMode


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([], UNPADDED),
        ([UNPADDED], SHARED),
        ([UNPADDED, SHARED], BATCHED),
        ([UNPADDED, SHARED, BATCHED], EQUAL),
        ([UNPADDED, SHARED, BATCHED, EQUAL], ONE),
        ([BATCHED], UNPADDED),
    ],
)
def test_the_fastest_mode_that_agrees_is_taken(wrong: list[ExecutionMode], expected: ExecutionMode) -> None:
    exact = torch.ones(3, 4)
    mode, errors = choose_mode(lambda mode: exact * (1.5 if mode in wrong else 1), first=UNPADDED, dtype=torch.float32)
    assert mode is expected
    assert [name for name, error in errors.items() if error] == [mode.value for mode in wrong if mode.value in errors]


def test_a_mode_that_there_is_not_is_never_taken() -> None:
    exact = torch.ones(3, 4)
    mode, errors = choose_mode(
        lambda mode: exact * (1.5 if mode is UNPADDED else 1), first=UNPADDED, without=(SHARED,), dtype=torch.float32
    )
    assert mode is BATCHED
    assert list(errors) == [UNPADDED.value, BATCHED.value]


def test_an_error_that_another_process_has_found_decides_too() -> None:
    mode, errors = choose_mode(
        lambda mode: torch.ones(3, 4), first=BATCHED, dtype=torch.float32, agree=lambda error: max(error, 0.5)
    )
    assert (mode, errors) == (ONE, {BATCHED.value: 0.5, EQUAL.value: 0.5})


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        (UNPADDED, [[9, 9, 7, 4, 4, 4]]),
        (SHARED, [[9, 9, 7, 4, 4, 4]]),
        (BATCHED, [[9, 9, 7, 4, 4, 4]]),
        (EQUAL, [[9, 9], [7], [4, 4, 4]]),
        (ONE, [[9], [9], [7], [4], [4], [4]]),
    ],
)
def test_a_batch_is_computed_in_the_parts_of_its_mode(mode: ExecutionMode, parts: list[list[int]]) -> None:
    length = torch.tensor([9, 9, 7, 4, 4, 4])
    assert [length[part].tolist() for part in parts_of_batch(mode, length)] == parts


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
def bidirectional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bidirectional(tmp_path_factory.mktemp("both_ways"))


@pytest.mark.slow
def test_a_model_that_is_not_causal_runs_without_padding(
    bidirectional: Path,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [*TEXTS, *(text[:-1] + "!" for text in TEXTS)]  # of each length there are two
    cfg = tiny_config(write_jsonl(texts), model=bidirectional)
    with caplog.at_level("WARNING", logger="memvec"):
        summary = memvec.predict(cfg)
    assert summary.manifest["notes"]["path"] == "batches of equal length"
    assert "parity probe" in caplog.text
    assert any("batches of equal length" in line for line in summary.lines())
    model, tokenizer = AutoModel.from_pretrained(bidirectional).eval(), AutoTokenizer.from_pretrained(bidirectional)
    with torch.no_grad():
        prompts = [tokenizer(ZH.replace("{text}", text), return_tensors="pt") for text in texts]
        expected = torch.stack([model(**prompt).last_hidden_state[0, -1] for prompt in prompts])
    torch.testing.assert_close(memvec.load(cfg.output_dir)["vector"][:], expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_that_is_wrong_is_not_used(
    write_jsonl: Callable[..., Path],
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
    # An implementation that is asked for keeps padding, and with it the prefix's own cache.
    cfg = tiny_config(write_jsonl(TEXTS), "model.attn_implementation=eager", output="probed")
    summary = memvec.predict(cfg)
    assert summary.manifest["notes"]["path"] == "batched"
    torch.testing.assert_close(memvec.load(cfg.output_dir)["vector"][:], memvec.load(right.output_dir)["vector"][:])


def test_the_probe_can_be_turned_off(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]) -> None:
    summary = memvec.predict(tiny_config(write_jsonl(TEXTS), "model.probe=off"))
    assert summary.manifest["notes"]["probe_relative_error"] == {}
