"""The data module: what is computed, with which prefix, and in which batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

import memvec
from memvec.data.budget import BUDGETS_ON_CPU
from memvec.data.grouping import best_prefix_length, rows_with_prefix
from memvec.data.sampler import LengthGroupedBatchSampler
from memvec.errors import ConfigError
from tests.helpers.refusals import refused


def metrics(cfg: DictConfig) -> dict[str, float]:
    content: dict[str, float] = json.loads((Path(cfg.output_dir) / "metrics.json").read_text())
    return content


def test_equal_texts_are_computed_once_and_each_id_has_its_row(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(["tea", "coffee", "tea", "tea", "coffee"]))
    summary = memvec.predict(cfg)
    assert metrics(cfg)["computed_entries"] == 2
    assert (summary.counts.entries, summary.counts.unique) == (5, 2)
    dataset = memvec.load(cfg.output_dir)
    assert dataset["id"][:] == [f"m/{n}" for n in range(5)]
    vectors = dataset["vector"][:]
    assert vectors[0].equal(vectors[2])
    assert vectors[1].equal(vectors[4])
    assert not vectors[0].equal(vectors[1])


def test_texts_that_truncation_makes_equal_are_computed_once(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(["tea " * 500 + "a", "tea " * 500 + "b"]))
    summary = memvec.predict(cfg)
    assert metrics(cfg)["computed_entries"] == 1
    assert summary.counts.truncated == 2


def test_the_prefix_that_spares_most_is_taken() -> None:
    assert best_prefix_length(np.asarray([14] * 100)) == 14
    assert best_prefix_length(np.asarray([14] * 99 + [2])) == 14  # one odd row does not shorten it for all
    assert best_prefix_length(np.asarray([14] * 10 + [12] * 90)) == 12
    assert best_prefix_length(np.asarray([0, 0])) == 0
    assert best_prefix_length(np.asarray([], dtype=np.int32)) == 0


def test_rows_without_the_prefix_or_too_long_run_without_it() -> None:
    lengths, shared = np.asarray([20, 20, 280, 281]), np.asarray([14, 13, 14, 14])
    assert rows_with_prefix(lengths, shared, 14).tolist() == [True, False, True, False]
    assert not rows_with_prefix(lengths, shared, 0).any()


def test_the_defaults_leave_less_than_two_percent_padding() -> None:
    """Lengths as LoCoMo's observations have them: 5 to 40 tokens around 18, 2,541 of them."""
    lengths = np.clip(np.random.default_rng(0).normal(18.7, 5.5, 2541).round(), 5, 40).astype(np.int64)
    sampler = LengthGroupedBatchSampler([(np.arange(2541), lengths)], batch_size=1024, max_tokens=1024)
    assert sampler.padding_share < 0.02


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        ("batch_size", 0, {"allowed": "an integer of at least 1"}),
        ("batch_size", "many", {"allowed": "an integer of at least 1"}),
        ("max_tokens", -1, {"allowed": "an integer of at least 1"}),
        ("max_tokens", "most", {"allowed": "auto, null, an integer of at least 1"}),
        ("limit", 0, {"allowed": "an integer of at least 1"}),
        ("num_workers", -1, {"allowed": "an integer of at least 0"}),
        ("on_error", "ignore", {"allowed": "reject, fail"}),
        ("max_length", 1000, {"found": "the model takes at most 256 tokens"}),
        ("max_length", 5, {"found": "leaves no room for a text"}),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(
    name: str,
    value: Any,
    fields: dict[str, Any],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
) -> None:
    cfg = tiny_config(write_jsonl(["tea"]), f"data.{name}={value}")
    with refused(ConfigError, f"data.{name}", value, **fields):
        memvec.predict(cfg)
    assert not Path(cfg.output_dir).exists()


def test_the_budget_is_found_by_trying_and_logged(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_jsonl([f"tea number {n}" for n in range(60)])
    found, default = tiny_config(data, "data.max_tokens=auto", output="auto"), tiny_config(data, output="default")
    with caplog.at_level("INFO", logger="memvec"):
        memvec.predict(found)
    memvec.predict(default)
    assert metrics(found)["max_tokens"] in BUDGETS_ON_CPU
    assert metrics(default)["max_tokens"] == 1024
    assert f"data.max_tokens=auto: {metrics(found)['max_tokens']} (tokens/s by budget: 256 " in caplog.text
    vectors = (memvec.load(cfg.output_dir)["vector"][:] for cfg in (found, default))
    torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-5)
