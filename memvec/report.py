"""The table of a sweep: which setting was how fast.

    python -m memvec.report outputs/sweeps/2026-11-23/16-00-00

In: a sweep's folder, one finished run in each of its folders. Out: a table on the terminal, `sweep.csv`, and, where
matplotlib is installed (`pip install 'memvec[report]'`), `sweep.png`. A sweep makes them itself when it ends.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from memvec.errors import MemvecError, RunFolderError
from memvec.files import read_json
from memvec.run import RunFolder
from memvec.sweep import FAILED, failed_jobs

COLUMNS = (
    "job",
    "batch_size",
    "max_tokens",
    "precision",
    "devices",
    "entries_per_second",
    "tokens_per_second",
    "padding_share",
    "peak_memory_bytes",
)
log = logging.getLogger("memvec.report")


def sweep_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for every finished job of a sweep, in the order of the jobs.

    Args:
        folder: The sweep's folder.

    Raises:
        RunFolderError: There is no finished run in it.
    """
    jobs = [RunFolder(path) for path in sorted(folder.glob("*/"), key=lambda path: (len(path.name), path.name))]
    rows = [_row(job) for job in jobs if job.is_finished]
    if not rows:
        raise RunFolderError(f"{folder}: holds no finished run of a sweep")
    return rows


def _row(job: RunFolder) -> dict[str, Any]:
    config, metrics = read_json(job.manifest)["config"], read_json(job.metrics)
    settings = {
        "job": job.root.name,
        "batch_size": config["data"]["batch_size"],
        "max_tokens": config["data"]["max_tokens"] or "by device",
        "precision": config["trainer"]["precision"],
        "devices": config["trainer"]["devices"],
    }
    return {**settings, **{name: metrics[name] for name in COLUMNS[len(settings) :]}}


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the rows as aligned lines, the header first."""
    shown = [[_shown(name, row[name]) for name in COLUMNS] for row in rows]
    header = ["job", "batch size", "max tokens", "precision", "devices", "entries/s", "tokens/s", "padding", "memory"]
    widths = [max(len(line[column]) for line in [header, *shown]) for column in range(len(header))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *shown]]


def _shown(name: str, value: Any) -> str:
    formats = {
        "entries_per_second": "{:,.1f}",
        "tokens_per_second": "{:,.0f}",
        "padding_share": "{:.1%}",
    }
    if name == "peak_memory_bytes":
        return f"{value / 2**30:.2f} GiB"
    return formats.get(name, "{}").format(value)


def write_report(folder: Path) -> list[str]:
    """Writes `sweep.csv` and, where matplotlib is installed, `sweep.png`; returns the table's lines.

    Args:
        folder: The sweep's folder.

    Raises:
        RunFolderError: There is no finished run in it.
    """
    rows = sweep_rows(folder)
    with (folder / "sweep.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [*table_lines(rows), *failed_lines(folder)]
    try:
        _plot(rows, folder / "sweep.png")
    except ImportError:
        lines.append("no plot: matplotlib is missing (pip install 'memvec[report]')")
    return lines


def failed_lines(folder: Path) -> list[str]:
    """Returns a line for every job that failed."""
    return [f"job {job} failed with exit code {code}" for job, code in failed_jobs(folder).items()]


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['batch_size']} / {row['max_tokens']}\n{row['precision']} x {row['devices']}" for row in rows]
    axes.bar(range(len(rows)), [row["entries_per_second"] for row in rows], color="#4477aa")
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.set_xlabel("batch size / max tokens, precision x devices")
    axes.set_ylabel("entries per second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


class SweepTable(Callback):
    """Prints the table when a sweep ends; Hydra calls it (conf/predict.yaml, `hydra.callbacks`)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forgets which jobs of an earlier sweep in this folder failed."""
        shutil.rmtree(Path(config.hydra.sweep.dir) / FAILED, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes and prints the report of the sweep's folder, and ends the process with the worst job's exit code."""
        folder = Path(config.hydra.sweep.dir)
        try:
            lines = write_report(folder)
        except MemvecError as error:  # no job has finished; each has said why
            lines = [str(error), *failed_lines(folder)]
        sys.stdout.write("\n".join([*lines, f"sweep      {folder.absolute()}"]) + "\n")
        if failed := failed_jobs(folder):
            sys.exit(max(failed.values()))


def main() -> None:
    """Makes the report of a sweep's folder again."""
    parser = argparse.ArgumentParser(prog="python -m memvec.report", description="The table of a sweep.")
    parser.add_argument("folder", type=Path, help="the sweep's folder")
    folder: Path = parser.parse_args().folder
    try:
        sys.stdout.write("\n".join(write_report(folder)) + "\n")
    except MemvecError as error:
        sys.stderr.write(f"memvec: error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
