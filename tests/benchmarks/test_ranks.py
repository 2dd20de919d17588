"""The benchmark of several ranks, on a model of almost no cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.ranks import main
from tests.helpers.models import NEARLY_FREE
from tests.helpers.processes import write_texts

pytestmark = pytest.mark.processes


def test_one_rank_and_two_are_measured_and_compared(
    model_folders: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write_texts(tmp_path / "texts.jsonl", 40)
    model = f"model.name_or_path={model_folders(NEARLY_FREE)}"
    assert main(["--data", str(path), "--repeats", "1", "model=hub", model, "trainer.accelerator=cpu"]) == 0
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"(\S+) entries/s$", capfd.readouterr().err, re.M)]
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)
