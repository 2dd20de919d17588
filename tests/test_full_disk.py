"""A disk that is full at any moment of a run: one line that names the file, and the run resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memvec
from tests.helpers.configs import compose
from tests.helpers.conversations import CHAT, generation_overrides, write_lines
from tests.helpers.processes import arguments, write_texts

pytestmark = pytest.mark.processes

# The file that is made when the disk is full, and the one that the line names.
PREDICT = {
    ".fingerprint.json.": "journal/fingerprint.json",
    ".rejected.jsonl.": "journal/entries.arrow",
    ".input.json.": "journal/input.json",
    ".prepared.json.": "journal/prepared.json",
    ".prompts.arrow.": "journal/prompts.arrow",
    ".first_rows.npy.": "journal/first_rows.npy",
    ".remaining_rows.npy.": "journal/remaining_rows.npy",
    ".frames": "journal/rank-00000-attempt-001.frames",
    ".metrics-rank-": "journal/metrics-rank-00000.json",
    ".history-rank-": "journal/history-rank-00000.json",
    ".part-00000-": "vectors/part-00000-of-00001.parquet",
    ".history.json.": "history.json",
    ".metrics.json.": "metrics.json",
    ".manifest.json.": "manifest.json",
}
GENERATE = {
    ".conversations.arrow.": "journal/conversations.arrow",
    ".frames": "journal/rank-00000-attempt-001.frames",
    ".memories.parquet.": "",  # whichever of the four that are written together
}


@pytest.fixture(scope="module")
def ended(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """How every run ended, by flow and moment."""
    root = tmp_path_factory.mktemp("full")
    texts, chat = write_texts(root / "texts.jsonl", 40), write_lines(root / "chat.jsonl", CHAT)
    runs = []
    for number, at in enumerate(PREDICT):
        overrides = arguments(texts, root / f"predict-{number}", llama, "trainer.devices=1")[3:]
        runs.append({"flow": "predict", "at": at, "overrides": overrides})
    for number, at in enumerate(GENERATE):
        overrides = generation_overrides(chat, root / f"generate-{number}", llama)
        runs.append({"flow": "generate", "at": at, "overrides": overrides})
    (root / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, "-m", "tests.helpers.full_disk", str(root / "runs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"at"')]
    return {(run["flow"], run["at"]): {**run, **line} for run, line in zip(runs, lines, strict=True)}


@pytest.mark.parametrize("at", PREDICT)
def test_a_run_on_a_full_disk_names_the_file_and_resumes(at: str, ended: dict[tuple[str, str], Any]) -> None:
    run = ended["predict", at]
    cfg = compose(run["overrides"])
    assert run["was_full"]
    assert run["said"].startswith(f"WriterError: {cfg.output_dir}/{PREDICT[at]}: cannot be written: [Errno 27]"), run
    assert "\n" not in run["said"]
    assert memvec.predict(cfg).counts.entries == 40
    assert memvec.load(cfg.output_dir)["id"][:] == [f"m/{n}" for n in range(40)]


@pytest.mark.parametrize("at", GENERATE)
def test_a_generation_on_a_full_disk_names_the_file(at: str, ended: dict[tuple[str, str], Any]) -> None:
    run = ended["generate", at]
    cfg = compose(run["overrides"], config_name="generate")
    assert run["was_full"]
    assert run["said"].startswith(f"WriterError: {cfg.output_dir}/{GENERATE[at]}".rstrip("/")), run
    assert ": cannot be written: [Errno 27]" in run["said"]
    assert "\n" not in run["said"]
    assert memvec.generate(cfg).counts.conversations > 0
