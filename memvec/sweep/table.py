"""The numbers of a sweep's jobs: which setting was how fast.

In: a sweep's folder, a finished run in each of its folders. Out: a row for each of them, as a table, as `sweep.csv`
and, where matplotlib is installed, as `sweep.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memvec.config.prompts import prompt_name
from memvec.errors import RunFolderError
from memvec.files import read_json
from memvec.run.folder import RunFolder
from memvec.table import aligned, write_csv

# Names in `sweep.csv`, and in the printed table.
COLUMNS = {
    "job": "job",
    "batch_size": "batch size",
    "max_tokens": "max tokens",
    "precision": "precision",
    "devices": "devices",
    "prompt": "prompt",
    "layer": "layer",
    "entries_per_second": "entries/s",
    "tokens_per_second": "tokens/s",
    "padding_share": "padding",
    "peak_memory_bytes": "memory",
}
# Settings that few sweeps vary: shown where they differ.
SHOWN_IF_VARIED = ("prompt", "layer")


def finished_jobs(folder: Path) -> list[RunFolder]:
    """Returns the finished runs in a sweep's folder, in the order of its jobs.

    Raises:
        RunFolderError: There is none.
    """
    jobs = [RunFolder(path) for path in sorted(folder.glob("*/"), key=lambda path: (len(path.name), path.name))]
    finished = [job for job in jobs if job.is_finished]
    if not finished:
        raise RunFolderError(f"{folder}: holds no finished run of a sweep")
    return finished


def sweep_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for every finished job of a sweep, in the order of the jobs.

    Args:
        folder: The sweep's folder.

    Raises:
        RunFolderError: There is no finished run in it.
    """
    return [_row(job) for job in finished_jobs(folder)]


def settings(job: RunFolder) -> dict[str, Any]:
    """Returns what jobs of a sweep most often differ in."""
    config = read_json(job.manifest)["config"]
    return {
        "job": job.root.name,
        "batch_size": config["data"]["batch_size"],
        "precision": config["trainer"]["precision"],
        # As many as there were, whatever `auto` would be here, unless nothing was left to compute and none was counted.
        "devices": read_json(job.metrics).get("ranks") or config["trainer"]["devices"],
        "prompt": prompt_name(config["prompt"]) if "prompt" in config else None,  # a run that generates has none
        "layer": config["model"]["layer"],
    }


def _row(job: RunFolder) -> dict[str, Any]:
    numbers = {**settings(job), **read_json(job.metrics)}
    return {name: numbers[name] for name in COLUMNS}


def shown_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the rows as texts for people, the header first."""
    constant = {name for name in SHOWN_IF_VARIED if len({row[name] for row in rows}) == 1}
    names = [name for name in COLUMNS if name not in constant]
    return [[COLUMNS[name] for name in names], *([_shown(name, row[name]) for name in names] for row in rows)]


def _shown(name: str, value: Any) -> str:
    formats = {
        "entries_per_second": "{:,.1f}",
        "tokens_per_second": "{:,.0f}",
        "padding_share": "{:.1%}",
    }
    if name == "peak_memory_bytes":
        return f"{value / 2**30:.2f} GiB"
    return formats.get(name, "{}").format(value)


def job_labels(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a label for every job: the settings in which the jobs differ, or its number where they differ in none."""
    measured = ("entries_per_second", "tokens_per_second", "padding_share", "peak_memory_bytes")
    varied = [n for n in COLUMNS if n not in ("job", *measured) and len({str(row[n]) for row in rows}) > 1]
    return [", ".join(f"{COLUMNS[n]} {row[n]}" for n in varied) or f"job {row['job']}" for row in rows]


def write_table(folder: Path) -> list[str]:
    """Writes `sweep.csv` and, where matplotlib is installed, `sweep.png`; returns the table's lines.

    Args:
        folder: The sweep's folder.

    Raises:
        RunFolderError: There is no finished run in it.
    """
    rows = sweep_rows(folder)
    write_csv(folder / "sweep.csv", rows)
    lines = aligned(shown_table(rows))
    try:
        _plot(rows, folder / "sweep.png")
    except ImportError:
        return [*lines, "no plot: matplotlib is missing (pip install 'memvec[report]')"]
    return lines


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(rows)), [row["entries_per_second"] for row in rows], color="#4477aa")
    axes.set_xticks(range(len(rows)), [label.replace(", ", "\n") for label in job_labels(rows)], fontsize=8)
    axes.set_ylabel("entries per second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
