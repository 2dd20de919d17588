"""The charts of a run's page: lengths, padding, throughput.

In: the lengths of all prompts, and the run's history. Out: charts (`memvec.page.contents`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memvec.fields import JsonObject
from memvec.page.contents import Json, chart
from memvec.run.summary import RunSummary

BINS = 40
TIMELINE = ("seconds", "entries", "tokens")
LENGTHS = ("entries", "padding")
SHORTEST_SLICE = 1e-6  # seconds


def run_charts(summary: RunSummary, lengths: NDArray[np.integer]) -> list[Json]:
    """Returns a run's charts.

    Args:
        summary: The run.
        lengths: Tokens of every entry's prompt, `[N]`.
    """
    step = max(1, -(-(int(lengths.max()) + 1) // BINS))
    shortest, longest = int(lengths.min()), int(lengths.max())
    charts = [
        _chart_by_length(
            "Lengths of the prompts",
            np.bincount(lengths // step),
            step,
            unit="entries",
            note=f"Shortest {shortest:,}, median {np.median(lengths):,.0f}, longest {longest:,} tokens.",
        )
    ]
    if summary.folder.history.exists():  # a run of an earlier version has none
        history = JsonObject.read(summary.folder.history)
        timeline = history.within("timeline").take_columns(TIMELINE, float)
        padding = history.within("lengths").take_columns(LENGTHS, int)
        if sum(timeline["entries"]):  # nor one whose last attempt had nothing left to compute
            tokens_per_bin = max(1, history.take("lengths.tokens_per_bin", int))
            charts += [_padding_chart(padding, tokens_per_bin), *_timeline_charts(timeline)]
    return charts


def _padding_chart(history: dict[str, list[int]], tokens_per_bin: int) -> Json:
    entries, padding = (np.asarray(history[name], dtype=np.float64) for name in LENGTHS)
    return _chart_by_length(
        "Padding by length",
        np.round(padding / np.maximum(entries, 1), 2),
        tokens_per_bin,
        unit="padding tokens an entry",
        note=f"{padding.sum():,.0f} tokens in all, over the {entries.sum():,.0f} entries of the run's last attempt.",
    )


def _chart_by_length(title: str, values: NDArray[Any], step: int, *, unit: str, note: str) -> Json:
    """Returns a histogram over bins of `step` tokens, from the first bin that is not empty."""
    first = int(np.flatnonzero(values)[0]) if values.any() else 0
    starts = range(first * step, len(values) * step, step)
    labels = [str(start) if step == 1 else f"{start}-{start + step - 1}" for start in starts]
    shown = {unit: values[first:].tolist()}
    return chart(title, kind="bars", labels=labels, series=shown, axis="tokens in a prompt", unit=unit, note=note)


def _timeline_charts(timeline: dict[str, list[float]]) -> list[Json]:
    seconds = timeline["seconds"]
    slice_seconds = max(seconds[-1] / len(seconds), SHORTEST_SLICE)
    return [
        chart(
            f"Throughput over the run, {name} a second",
            kind="bars",
            labels=[f"{end:,.1f}" for end in seconds],
            series={f"{name}/s": [round(value / slice_seconds, 1) for value in timeline[name]]},
            axis="seconds since predicting began",
            unit=f"{name}/s",
            note="The longest prompts run first." if name == "entries" else "",
        )
        for name in ("tokens", "entries")
    ]
