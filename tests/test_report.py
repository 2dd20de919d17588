"""The table of a sweep: its numbers, its files, and what it says where there is none."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import RunFolderError
from memvec.report import COLUMNS, sweep_rows, table_lines, write_report
from memvec.sweep import FAILED, failed_jobs


@pytest.fixture
def sweep(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """Three finished jobs, one that failed."""
    path = write_jsonl([f"text {n}" for n in range(20)])
    for job, batch_size in ((0, 4), (2, 1), (10, 8)):
        memvec.predict(tiny_config(path, f"data.batch_size={batch_size}", output=f"sweep/{job}"))
    (tmp_path / "sweep" / "1").mkdir()
    return tmp_path / "sweep"


def test_every_finished_job_is_a_row_in_the_order_of_the_jobs(sweep: Path) -> None:
    rows = sweep_rows(sweep)
    assert [row["job"] for row in rows] == ["0", "2", "10"]
    assert [row["batch_size"] for row in rows] == [4, 1, 8]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert all(row["entries_per_second"] > 0 for row in rows)


def test_the_csv_holds_the_same_numbers(sweep: Path) -> None:
    lines = write_report(sweep)
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["batch_size"] for row in written] == ["4", "1", "8"]
    assert [float(row["tokens_per_second"]) for row in written] == [
        row["tokens_per_second"] for row in sweep_rows(sweep)
    ]
    assert lines[0].split()[:2] == ["job", "batch"]


def test_jobs_that_failed_are_named(sweep: Path) -> None:
    (sweep / FAILED).mkdir()
    (sweep / FAILED / "1").write_text("2")
    assert failed_jobs(sweep) == {"1": 2}
    assert "job 1 failed with exit code 2" in write_report(sweep)


def test_a_plot_is_drawn_where_matplotlib_is_installed(sweep: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(sweep)
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_columns_are_aligned(sweep: Path) -> None:
    assert len({len(line) for line in table_lines(sweep_rows(sweep))}) == 1


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no finished run of a sweep"):
        write_report(tmp_path)
