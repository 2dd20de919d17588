"""What a finished run leaves about itself, and the five lines it closes with."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import memvec
from memvec.config.compose import to_container
from memvec.files import read_json, write_json
from memvec.run import summary as run_summary
from memvec.run.folder import RunFolder
from memvec.run.summary import RunSummary, read_summary, write_summary
from memvec.writer.finalize import Counts
from tests.helpers.configs import compose
from tests.helpers.runs import random_vectors, write_run

COUNTS = Counts(entries=12_345, rejected=0, truncated=1_000, unique=12_000, dimension=576)
NOTES = {"prefix_tokens": 7, "path": "batched, shared prefix computed once"}
METRICS: dict[str, Any] = {
    "tokens_per_second": 98_765.4,
    "entries_per_second": 1_234.56,
    "computed_entries": 12_000,
    "seconds": {"predict": 10.0},
}


CONFIG = to_container(compose())


def write(root: Path, counts: Counts = COUNTS) -> RunSummary:
    folder = RunFolder(root)
    folder.journal.mkdir(parents=True)
    write_json(folder.fingerprint, {"layer": -1})
    return write_summary(folder, RunSummary, counts=counts, config=CONFIG, metrics=METRICS, notes=NOTES)


def replaced(summary: RunSummary, reused: dict[str, int], *, computed: int) -> RunSummary:
    manifest = {**summary.manifest, "notes": {**NOTES, "reused": reused}}
    return RunSummary(summary.folder, manifest, {**METRICS, "computed_entries": computed})


def test_the_closing_summary_is_five_lines(tmp_path: Path) -> None:
    assert write(tmp_path).lines() == [
        "entries    12,345 (12,000 different) of 576 numbers each",
        "rejected   0",
        "truncated  1,000",
        "tokens/s   98,765 (1,234.6 entries/s; batched, shared prefix computed once)",
        f"vectors    {tmp_path / 'vectors'}",
    ]


def test_a_resumed_runs_speed_says_what_it_was_measured_over(tmp_path: Path) -> None:
    summary = write(tmp_path)
    resumed = RunSummary(summary.folder, summary.manifest, {**METRICS, "computed_entries": 2})
    assert resumed.lines()[3].endswith(", over the 2 computed since the run was resumed")


def test_reused_vectors_are_counted_by_their_runs_folder(tmp_path: Path) -> None:
    summary = write(tmp_path)
    few = replaced(summary, {"runs/a": 11_000, "runs/b": 999}, computed=1)
    assert few.lines()[3:5] == [
        "reused     11,000 from runs/a, 999 from runs/b",
        "tokens/s   98,765 (1,234.6 entries/s; batched, shared prefix computed once), over the 1 computed",
    ]
    many = replaced(summary, {f"runs/{n}": 1_000 for n in range(4)}, computed=2)
    assert many.lines()[3] == "reused     4,000 from 4 runs"
    assert many.lines()[4].endswith(", over the 2 computed since the run was resumed")


def test_rejected_rows_point_to_the_file_that_names_them(tmp_path: Path) -> None:
    counts = Counts(entries=1, rejected=2_000, truncated=0, unique=1, dimension=4)
    assert write(tmp_path, counts).lines()[1] == f"rejected   2,000 (why: {tmp_path / 'rejected.jsonl'})"


def test_a_summary_reads_back_as_it_was_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", random_vectors(20))
    read = read_summary(folder, RunSummary)
    assert (read.manifest, read.metrics) == (read_json(folder.manifest), read_json(folder.metrics))
    assert read.counts == Counts(entries=20, rejected=0, truncated=0, unique=20, dimension=16)
    assert read.lines()[0] == "entries    20 (20 different) of 16 numbers each"


def test_the_manifest_says_what_ran_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_summary, "LIBRARIES", ("torch", "not-installed"))  # such as memvec on the path alone
    write(tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["fingerprint"] == {"layer": -1}
    assert manifest["counts"] == asdict(COUNTS)
    assert manifest["config"] == CONFIG
    assert manifest["notes"] == NOTES
    assert manifest["versions"]["memvec"] == memvec.__version__
    assert manifest["versions"]["torch"] == version("torch")
    assert "not-installed" not in manifest["versions"]
    finished = datetime.fromisoformat(manifest["finished"])
    assert finished.tzinfo is not None
    assert abs((datetime.now(UTC) - finished).total_seconds()) < 600


def test_without_metrics_there_is_no_manifest(tmp_path: Path) -> None:
    """The manifest makes a run complete, so it has to be the last file."""
    folder = RunFolder(tmp_path)
    folder.journal.mkdir(parents=True)
    write_json(folder.fingerprint, {"layer": -1})
    with pytest.raises(TypeError):
        write_summary(folder, RunSummary, counts=COUNTS, config={}, metrics={"seconds": object()}, notes={})
    assert not folder.is_finished
