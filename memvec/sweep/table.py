"""The numbers of a sweep's jobs: which setting was how fast.

In: a sweep's folder, a finished run in each of its folders. Out: a row for each of them, as a table, as `sweep.csv`
and, where matplotlib is installed, as `sweep.png`. Whatever the jobs' configurations differ in has a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memvec.config.prompts import prompt_name
from memvec.errors import RunFolderError, on_one_line
from memvec.fields import JsonObject
from memvec.files import atomic_file
from memvec.run.folder import RunFolder
from memvec.run.manifest import find_manifest, read_manifest, run_settings
from memvec.table import aligned, write_csv

# Names in `sweep.csv`, and in the printed table.
SETTINGS = {
    "job": "job",
    "batch_size": "batch size",
    "max_tokens": "max tokens",
    "precision": "precision",
    "devices": "devices",
    "prompt": "prompt",
    "layer": "layer",
}
MEASURED = {
    "entries_per_second": "entries/s",
    "tokens_per_second": "tokens/s",
    "padding_share": "padding",
    "peak_memory_bytes": "memory",
}
MOST_CHARACTERS = 60  # of a setting, where people read it
MOST_IN_LABEL = 6  # settings of a job
# Settings that few sweeps vary: shown where they differ.
SHOWN_IF_VARIED = ("prompt", "layer")
# Overrides that one of SETTINGS shows; and one that every job has of its own.
SHOWN_OTHERWISE = {
    *("data.batch_size", "trainer.precision", "trainer.devices", "prompt.template", "prompt.chat", "model.layer"),
    "output_dir",
}

Row = dict[str, Any]


def finished_jobs(folder: Path) -> list[RunFolder]:
    """Returns the finished runs in a sweep's folder, in the order of its jobs.

    Raises:
        RunFolderError: There is none, or the manifest of one is damaged.
    """
    jobs = [RunFolder(path) for path in sorted(folder.glob("*/"), key=lambda path: (len(path.name), path.name))]
    finished = [job for job in jobs if find_manifest(job) is not None]
    if not finished:
        if not folder.is_dir():
            raise RunFolderError(folder, found="no such folder", allowed="a run, or the folder of a sweep's runs")
        raise RunFolderError(folder, found="holds no finished run of a sweep")
    return finished


def sweep_rows(folder: Path) -> list[Row]:
    """Returns a row for every finished job of a sweep, in the order of the jobs, all with the same columns.

    Args:
        folder: The sweep's folder.

    Raises:
        RunFolderError: There is no finished run in it, or a file of one is damaged.
    """
    jobs = finished_jobs(folder)
    return [{**known, **_measured(job)} for known, job in zip(settings(jobs), jobs, strict=True)]


def settings(jobs: Sequence[RunFolder]) -> list[Row]:
    """Returns the settings of each job: the usual ones, and every other that these jobs differ in."""
    known = [_known_settings(job) for job in jobs]
    found = [run_settings(job) for job in jobs]
    swept = [name for name in dict.fromkeys(name for row in found for name in row) if _differs(found, name)]
    if all(row.get("data.max_tokens") == shown["max_tokens"] for row, shown in zip(found, known, strict=True)):
        swept = [name for name in swept if name != "data.max_tokens"]
    swept = [name for name in swept if name not in SHOWN_OTHERWISE and not name.endswith("._target_")]
    return [{**shown, **{name: row.get(name) for name in swept}} for shown, row in zip(known, found, strict=True)]


def _differs(rows: Sequence[Row], name: str) -> bool:
    return len({str(row.get(name)) for row in rows}) > 1


def _known_settings(job: RunFolder) -> Row:
    manifest, metrics, config = read_manifest(job), JsonObject.read(job.metrics), run_settings(job)
    return {
        "job": job.root.name,
        "batch_size": config.get("data.batch_size"),
        "max_tokens": metrics.take_or("max_tokens", int),
        "precision": manifest.precision,
        # As many as there were, whatever `auto` would be here, unless nothing was left to compute and none was counted.
        "devices": metrics.take_or("ranks", int) or config.get("trainer.devices"),
        "prompt": prompt_name(vars(manifest.prompt)) if manifest.prompt else None,  # a run that generates has none
        "layer": manifest.layer,
    }


def _measured(job: RunFolder) -> Row:
    metrics = JsonObject.read(job.metrics)
    memory = {"peak_memory_bytes": metrics.take("peak_memory_bytes", int)}
    return {**{name: metrics.take(name, float) for name in MEASURED if name not in memory}, **memory}


def shown_table(rows: list[Row]) -> list[list[str]]:
    """Returns the rows as texts for people, the header first."""
    names = [name for name in rows[0] if name not in SHOWN_IF_VARIED or _differs(rows, name)]
    return [[_title(name) for name in names], *([_shown(name, row[name]) for name in names] for row in rows)]


def _title(name: str) -> str:
    return {**SETTINGS, **MEASURED}.get(name, on_one_line(name))


def _shown(name: str, value: Any) -> str:
    formats = {
        "entries_per_second": "{:,.1f}",
        "tokens_per_second": "{:,.0f}",
        "padding_share": "{:.1%}",
    }
    if name == "peak_memory_bytes":
        return f"{value / 2**30:.2f} GiB"
    text = formats.get(name, "{}").format(value)
    return on_one_line(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")


def job_labels(rows: list[Row]) -> list[str]:
    """Returns a label for every job: the settings in which the jobs differ, or its number where that says too much."""
    varied = [name for name in rows[0] if name not in ("job", *MEASURED) and _differs(rows, name)]
    varied = varied if len(varied) <= MOST_IN_LABEL else []
    return [", ".join(f"{_title(n)} {_shown(n, row[n])}" for n in varied) or f"job {row['job']}" for row in rows]


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


def _plot(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(rows)), [row["entries_per_second"] for row in rows], color="#4477aa")
    axes.set_xticks(range(len(rows)), [label.replace(", ", "\n") for label in job_labels(rows)], fontsize=8)
    axes.set_ylabel("entries per second")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
