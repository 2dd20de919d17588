"""A profile on request: where the time of a run went."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.trainer.metrics import stage_table
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, write_lines


@pytest.mark.slow
def test_a_profile_leaves_tables_and_a_trace(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl([f"text {n}" for n in range(40)]), "data.batch_size=2", "profile=true")
    memvec.predict(cfg)
    folder = Path(cfg.output_dir) / "profile"
    assert "load and predict" in (folder / "stages.txt").read_text()
    (operations,) = folder.glob("*operations*.txt")
    assert "aten::" in operations.read_text()
    (trace,) = folder.glob("*.json")
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_run_of_one_batch_has_its_profile_too(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(["one", "two"]), "profile=true")
    memvec.predict(cfg)
    (operations,) = (Path(cfg.output_dir) / "profile").glob("*operations*.txt")
    assert "aten::" in operations.read_text()


@pytest.mark.slow
def test_generating_is_profiled_too(scripted: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "conversations.jsonl", marked(2, ("", "")))
    overrides = generation_overrides(path, tmp_path / "run", scripted, "profile=true")
    memvec.generate(compose(overrides, config_name="generate"))
    (operations,) = (tmp_path / "run" / "profile").glob("operations*.txt")
    assert "aten::" in operations.read_text()


def test_nothing_is_profiled_unasked(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]) -> None:
    cfg = tiny_config(write_jsonl(["one"]))
    memvec.predict(cfg)
    assert not (Path(cfg.output_dir) / "profile").exists()


def test_the_stages_add_up() -> None:
    table = stage_table({"prepare": 1.0, "predict": 3.0}).splitlines()
    assert table[0].split() == ["prepare", "1.00", "s", "25.0", "%"]
    assert table[2].split() == ["all", "4.00", "s"]
