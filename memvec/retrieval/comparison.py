"""Which layer and prompt are best: the evaluations of runs, and of the layers of a run, side by side.

In: evaluated runs. Out: a row for each layer of each of them, as a table, as `evaluation.csv` and, where matplotlib is
installed, as `evaluation.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memvec.errors import on_one_line
from memvec.fields import JsonObject
from memvec.files import atomic_file
from memvec.retrieval.measures import MEASURES
from memvec.run.folder import RunFolder
from memvec.sweep.table import SETTINGS, settings
from memvec.table import aligned, write_csv

BEST_BY = "nDCG@10"
SHOWN = ("job", "prompt", "layer")


def evaluation_rows(jobs: list[RunFolder]) -> list[dict[str, Any]]:
    """Returns a row for every layer of every run that has been evaluated, all with the same columns."""
    evaluated = [job for job in jobs if job.evaluation.exists()]
    return [
        {**{name: row[name] for name in row if name in SHOWN or name not in SETTINGS}, **measured}
        for row, job in zip(settings(evaluated), evaluated, strict=True)
        for measured in _measured(job, row["layer"])
    ]


def _measured(job: RunFolder, layer: int | list[int]) -> list[dict[str, Any]]:
    """Returns each layer of a run that was evaluated, and its measures."""
    evaluation = JsonObject.read(job.evaluation)
    found = []
    for each in evaluation.take_objects("layers") if evaluation.has("layers") else [evaluation]:
        # An earlier version wrote no layer; there was only one.
        is_told = each.has("layer") or not isinstance(layer, int)
        measures = each.within("measures")
        found.append(
            {
                "layer": each.take("layer", int) if is_told else layer,
                **{name: measures.take(name, float) for name in MEASURES},
            }
        )
    return found


def shown_evaluation(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the rows as texts for people, the header first."""
    names = list(rows[0])
    return [names, *([_shown(name, row[name]) for name in names] for row in rows)]


def _shown(name: str, value: Any) -> str:
    return f"{value:.4f}" if name in MEASURES else on_one_line(str(value))


def best_line(rows: list[dict[str, Any]]) -> str:
    """Says which run is best."""
    best = max(rows, key=lambda row: float(row[BEST_BY]))
    return f"best by {BEST_BY}: job {best['job']}, prompt {best['prompt']}, layer {best['layer']}"


def by_layer(rows: list[dict[str, Any]], measure: str) -> tuple[list[int], dict[str, list[float | None]]]:
    """Returns what is plotted: the layers in order, and for every prompt the measure at each; None where not run."""
    # Layers counted from the end stand behind those counted from the start: -1 is the last.
    layers = sorted({int(row["layer"]) for row in rows}, key=lambda layer: (layer < 0, layer))
    values = {(row["prompt"], int(row["layer"])): float(row[measure]) for row in rows}
    prompts = dict.fromkeys(str(row["prompt"]) for row in rows)
    return layers, {prompt: [values.get((prompt, layer)) for layer in layers] for prompt in prompts}


def write_comparison(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Writes `evaluation.csv` and, where matplotlib is installed, `evaluation.png`; returns the table's lines.

    Args:
        folder: The sweep's folder.
        rows: Of its runs, at least one.
    """
    write_csv(folder / "evaluation.csv", rows)
    lines = [*aligned(shown_evaluation(rows), left=(0, 1)), best_line(rows)]
    try:
        _plot(rows, folder / "evaluation.png")
    except ImportError:
        return [*lines, "no plot: matplotlib is missing (pip install 'memvec[report]')"]
    return lines


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("hit@10", BEST_BY), strict=True):
        layers, lines = by_layer(rows, measure)
        for prompt, values in lines.items():
            axes.plot(range(len(layers)), [float("nan") if v is None else v for v in values], marker="o", label=prompt)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xlabel("layer")
        axes.set_title(measure)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
