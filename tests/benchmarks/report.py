"""Medians, ratios and shares; the table, the JSON and the chart of them.

In: every contestant's turns. Out: a plain dictionary, which is the JSON, and what is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memvec.files import write_json
from tests.benchmarks.contestants import Contestant
from tests.benchmarks.task import Task, Work
from tests.benchmarks.turn import Turn

Results = dict[str, Any]


def summarise(
    task: Task,
    work: Work,
    turns: Mapping[str, Sequence[Turn]],
    *,
    contestants: Mapping[str, Contestant],
    truth: NDArray[np.float32],
    limits: Sequence[dict[str, Any]],
    skipped: dict[str, str],
    memory: str,
    from_start: Mapping[str, float] | None = None,
) -> Results:
    """Returns what was measured.

    Args:
        task: What was run.
        work: How much it was.
        turns: Of each contestant, one a repeat.
        contestants: All that there are.
        truth: The subset's vectors in float32, `[S, D]`.
        limits: The machine's limit, one a repeat.
        skipped: Contestants that did not run, and why.
        memory: Whose memory the peak is of.
        from_start: Seconds from the start of a contestant's process on that it needed beside its first turn; None where
            all share a process.
    """
    rate = median(limit["flop_per_second"] for limit in limits)
    measured = {name: _measured(contestants[name], task, work, turns[name], truth, rate) for name in turns}
    memvec = measured.get("memvec")
    for name, numbers in measured.items():
        computing = len(task.texts) / numbers["entries_per_second"]
        numbers["seconds_from_start"] = None if from_start is None else from_start[name] + computing
        numbers["memvec_is_faster_by"] = (
            memvec["entries_per_second"] / numbers["entries_per_second"] if memvec is not None else None
        )
    return {
        "settings": {
            "model": task.model,
            "precision": task.precision,
            "device": limits[0]["device"],
            "threads": task.threads,
            "template": task.template,
            "repeats": len(limits),
            "memvec_overrides": list(task.overrides),
            "memory": memory,
        },
        "work": {
            "entries": len(task.texts),
            "unique": work.unique,
            "tokens": work.tokens,
            "shared_prefix": work.shared_prefix,
            "fewest_tokens": work.fewest_tokens,
            "non_embedding_parameters": work.parameters,
            "compared_entries": len(task.subset),
        },
        "limit": {**limits[0], "flop_per_second": rate},
        "contestants": measured,
        "skipped": skipped,
    }


def _measured(
    contestant: Contestant, task: Task, work: Work, turns: Sequence[Turn], truth: NDArray[np.float32], rate: float
) -> dict[str, Any]:
    rows = contestant.rows(task)
    seconds = median(turn.seconds for turn in turns)
    # A contestant that ran a subset is taken to go on at its pace, in tokens: its rows may be shorter than the others.
    tokens = sum(work.lengths[row] for row in rows)
    entries = len(task.texts) * tokens / work.tokens
    entries_per_second = entries / seconds
    steady = entries / median(turn.seconds - turn.warm_up_seconds for turn in turns)
    vectors = turns[-1].vectors
    lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(truth, axis=1)
    return {
        "title": contestant.title,
        "entries": len(rows),
        "seconds": [turn.seconds for turn in turns],
        "entries_per_second": entries_per_second,
        "steady_entries_per_second": steady,
        "tokens_per_second": tokens / seconds,
        "share_of_limit": work.flop / (len(task.texts) / steady) / rate,
        "padding_share": turns[-1].padding_share,
        "peak_memory_bytes": max(turn.peak_memory_bytes for turn in turns),
        "max_relative_error": float((np.linalg.norm(vectors - truth, axis=1) / lengths[1]).max()),
        "min_cosine": float(((vectors * truth).sum(axis=1) / lengths[0] / lengths[1]).min()),
        "details": turns[-1].details,
    }


def table(results: Results) -> str:
    """Returns the results as lines of text."""
    settings, work, limit = results["settings"], results["work"], results["limit"]
    columns = [
        "", "entries", "entries/s", "(slowest-fastest)", "steady", "from start", "tokens/s", "memvec is", "of limit",
        "padding", "peak memory", "max error", "min cosine",
    ]  # fmt: skip
    rows = [columns]
    for numbers in results["contestants"].values():
        ratio = numbers["memvec_is_faster_by"]
        middle = median(numbers["seconds"])
        slowest, fastest = (numbers["entries_per_second"] * middle / pick(numbers["seconds"]) for pick in (max, min))
        rows.append(
            [
                numbers["title"],
                f"{numbers['entries']:,}",
                f"{numbers['entries_per_second']:,.1f}",
                f"({slowest:,.1f}-{fastest:,.1f})",
                f"{numbers['steady_entries_per_second']:,.1f}",
                _seconds(numbers["seconds_from_start"]),
                f"{numbers['tokens_per_second']:,.0f}",
                "-" if ratio is None else f"{ratio:.2f} x",
                f"{numbers['share_of_limit']:.1%}",
                f"{numbers['padding_share']:.1%}",
                f"{numbers['peak_memory_bytes'] / 2**30:.2f} GiB",
                f"{numbers['max_relative_error']:.1e}",
                f"{numbers['min_cosine']:.6f}",
            ]
        )
    lines = _aligned(rows)
    head = [
        f"{settings['model']}, {settings['precision']}, {settings['device']}, {settings['threads']} threads",
        f"{work['entries']:,} entries ({work['unique']:,} different), {work['tokens']:,} prompt tokens; at least "
        f"{work['fewest_tokens']:,} must be computed (the first {work['shared_prefix']} of every prompt are the same)",
        f"limit: {limit['flop_per_second'] / 1e9:,.0f} GFLOP/s in {limit['dtype']} at {limit['shape']}, float32 route "
        f"{limit['route']!r}; medians of {settings['repeats']} interleaved repeats; error and cosine on "
        f"{work['compared_entries']} entries against one by one in float32; peak memory {settings['memory']}",
    ]
    memvec = results["contestants"].get("memvec")
    stages = memvec["details"].get("metrics", {}).get("seconds", {}) if memvec is not None else {}
    whole = [f"memvec's whole run, s: {', '.join(f'{name} {seconds:.2f}' for name, seconds in stages.items())}"] * bool(
        stages
    )
    compiled = results["contestants"].get("memvec-compiled")
    if compiled is not None and (seconds := compiled["details"]["compile_seconds"]) is not None:
        whole.append(f"compiling took {seconds:.1f} of {compiled['seconds'][-1]:.1f} s")
    skipped = [f"{name}: skipped, {reason}" for name, reason in results["skipped"].items()]
    return "\n".join([*head, "", *lines, *whole, *skipped])


def side_by_side(results: Mapping[str, Results]) -> str:
    """Returns several sets of texts as lines: a row a contestant, four columns a set.

    Args:
        results: Of each set, by its name.
    """
    memvec = {name: found["contestants"].get("memvec") for name, found in results.items()}
    rows = [["", *(cell for name in results for cell in (f"{name}: entries/s", "of limit", "from start", "memvec is"))]]
    for contestant in dict.fromkeys(name for found in results.values() for name in found["contestants"]):
        row = [contestant]
        for name, found in results.items():
            numbers, own = found["contestants"].get(contestant), memvec[name]
            if numbers is None:
                row += ["-"] * 4
                continue
            steady, whole = numbers["steady_entries_per_second"], numbers["seconds_from_start"]
            ratios = own and (own["steady_entries_per_second"] / steady, whole / own["seconds_from_start"])
            faster = f"{ratios[0]:.2f} x, {ratios[1]:.2f} x" if ratios else "-"
            row += [f"{steady:,.1f}", f"{numbers['share_of_limit']:.0%}", _seconds(whole), faster]
        rows.append(row)
    return "\n".join(_aligned(rows))


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.1f} s"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines whose columns stand below each other, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return ["  ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)) for row in rows]


def write(results: Results, folder: Path, *, name: str) -> list[Path]:
    """Writes the JSON and, where matplotlib is installed, the chart; returns their paths.

    Args:
        results: What was measured.
        folder: Where to.
        name: Of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json"]
    write_json(written[0], results)
    if not results["contestants"]:
        return written
    try:
        import matplotlib as mpl
    except ImportError:
        results["skipped"]["chart"] = "the package matplotlib is not installed"
        return written
    mpl.use("agg")
    written.append(folder / f"{name}.png")
    _draw(results, written[1])
    return written


def _draw(results: Results, path: Path) -> None:
    from matplotlib import pyplot as plt

    contestants = list(results["contestants"].values())[::-1]  # the first on top
    speeds = [numbers["entries_per_second"] for numbers in contestants]
    colours = ["#c44e52" if numbers["title"] == "memvec" else "#8c9bb0" for numbers in contestants]
    figure, axes = plt.subplots(figsize=(9, 0.6 * len(contestants) + 1.4), layout="constrained")
    bars = axes.barh([fill(numbers["title"], 36) for numbers in contestants], speeds, color=colours)
    axes.bar_label(bars, [f"{speed:,.1f}" for speed in speeds], padding=4)
    axes.set_xlim(0, 1.12 * max(speeds))
    axes.set_xlabel("entries per second")
    settings = results["settings"]
    model = Path(settings["model"]).name
    title = f"{model}, {settings['precision']}, {settings['device']}, {settings['threads']} threads"
    figure.suptitle(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
