"""What the page of a run shows.

In: a finished run's folder. Out: the contents of its page (`memvec.page.contents`).

How: numbers come from the manifest and the metrics; the map, the nearest, the near-duplicates and the outliers from the
vectors themselves, of a sample where there are more than a page can hold. Long texts are cut, so that a page of 20,000
entries stays a few megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from memvec.config.prompts import prompt_name
from memvec.errors import on_one_line
from memvec.fields import JsonObject
from memvec.files import read_json_lines
from memvec.page.charts import run_charts
from memvec.page.contents import Json, packed, table
from memvec.page.groups import Colouring, by_column, by_length, by_name, by_prefix
from memvec.page.neighbours import NEAREST, Neighbourhood, neighbourhood
from memvec.page.projection import clusters, positions, principal_components
from memvec.retrieval.exact import mean_vector
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest, read_manifest, run_settings
from memvec.run.result import load
from memvec.run.summary import RunSummary, read_summary
from memvec.schema import ID, NUM_TOKENS, TEXT
from memvec.units import as_units

MOST_POINTS = 20_000
MOST_ROWS = 50
REJECTED = ("file", "row", "id", "reason")
CHARACTERS_OF_ALL_TEXTS = 4_000_000
CHARACTERS_OF_A_TEXT = (120, 2_000)  # never less, never more

Texts = Sequence[str | None]  # None where the run kept none


def run_page(folder: RunFolder, *, layer: int | None = None, most_points: int = MOST_POINTS) -> Json:
    """Returns the contents of a run's page.

    Args:
        folder: A finished run.
        layer: One of the run's; None is the last that it names.
        most_points: Entries on the map; of more, a random sample is drawn.

    Raises:
        ConfigError: The run has no such layer.
        ExtraError: scikit-learn is not installed.
        RunFolderError: There is no finished run.
    """
    manifest = read_manifest(folder)
    shown, column = list(manifest.columns(layer).items())[-1]
    dataset, summary = load(folder.root), read_summary(folder, RunSummary)
    finished = manifest.finished.replace("T", " ").replace("+00:00", " UTC")
    rows = _sample(len(dataset), most_points)
    sample = dataset.with_format("arrow")[rows]
    lengths = sample.column(NUM_TOKENS).to_numpy()
    ids = [str(name) for name in sample.column(ID).to_pylist()]
    texts: Texts = _cut(sample.column(TEXT).to_pylist()) if TEXT in sample.column_names else [None] * len(ids)
    vectors = sample.column(column).combine_chunks().flatten().to_numpy().reshape(len(rows), -1).astype(np.float32)
    nearest = neighbourhood(vectors)
    sampled = _sampled(len(rows), len(dataset))
    components = principal_components(as_units(vectors - mean_vector([vectors])))
    labels, central = clusters(components)
    names = [f"near: {_short(texts[row] or ids[row])}" for row in central]
    kept = [by_column(name, sample.column(name)) for name in manifest.keep_columns]
    colourings = [by_prefix(ids), by_name("cluster", [names[label] for label in labels]), by_length(lengths), *kept]
    return {
        "title": on_one_line(folder.root.name),
        "subtitle": f"memvec run, finished {on_one_line(finished)}",
        "facts": _facts(summary, manifest, shown),
        "map": {
            "note": sampled,
            "ids": ids,
            "texts": texts,
            "lengths": lengths.tolist(),
            "positions": packed(np.round(positions(components) * 65_535), np.uint16),
            "nearest": packed(nearest.rows, np.uint32),
            "similarities": packed(np.round(nearest.scores * 10_000), np.int16),
            "colourings": [_colouring(one) for one in colourings if one is not None],
        },
        "charts": run_charts(summary, dataset.data.column(NUM_TOKENS).to_numpy()),
        "tables": [
            *_same_texts(dataset, summary),
            _near_duplicates(nearest, ids, texts, sampled),
            _outliers(nearest, ids, texts, sampled),
            *_rejected(folder, summary),
        ],
    }


def _sample(rows: int, most: int) -> NDArray[np.int64]:
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _sampled(shown: int, entries: int) -> str:
    return "" if shown == entries else f"A random sample of {shown:,} of the {entries:,} entries."


def _cut(texts: Sequence[str]) -> list[str]:
    """Cuts texts so that all of them together fit into a page."""
    fewest, most = CHARACTERS_OF_A_TEXT
    limit = min(most, max(fewest, CHARACTERS_OF_ALL_TEXTS // len(texts)))
    return [text if len(text) <= limit else f"{text[:limit]}…" for text in texts]


def _short(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"


def _facts(summary: RunSummary, manifest: Manifest, layer: int) -> list[tuple[str, str]]:
    counts, numbers = summary.counts, summary.numbers
    speeds = [f"{numbers.take(f'{unit}_per_second', float):,.1f} {unit}/s" for unit in ("entries", "tokens")]
    seconds = numbers.within("seconds").take_all(float)
    prompt = manifest.prompt
    facts = [
        ("entries", f"{counts.entries:,} ({counts.unique:,} different)"),
        ("rejected", f"{counts.rejected:,}"),
        ("truncated", f"{counts.truncated:,}"),
        ("numbers in a vector", f"{counts.dimension:,}, {manifest.vector_dtype}{', unit length' * manifest.normalize}"),
        ("input", str(run_settings(summary.folder).get("data.path") or "rows that a program gave")),
        ("model", manifest.name_or_path),
        ("layer", _layers(manifest, layer)),
        ("prompt", "" if prompt is None else f"{prompt_name(vars(prompt))}: {prompt.template}"),
        ("precision", f"{manifest.precision} ({manifest.fingerprint.get('dtype')})"),
        ("computed", manifest.computed),
        ("speed", ", ".join(speeds)),
        ("padding", f"{numbers.take('padding_share', float):.1%} of the tokens computed"),
        ("seconds", ", ".join(f"{name} {spent:,.1f}" for name, spent in seconds.items())),
        ("most memory", f"{numbers.take('peak_memory_bytes', int) / 2**30:.2f} GiB"),
        ("versions", ", ".join(f"{name} {number}" for name, number in manifest.versions.items())),
    ]
    return [(name, on_one_line(value)) for name, value in facts]


def _layers(manifest: Manifest, layer: int) -> str:
    """Says which layer the page shows, and of which."""
    shown = f"{layer} (after the final norm)" if layer == -1 else str(layer)
    return shown if isinstance(manifest.layer, int) else f"{shown}, of {', '.join(map(str, manifest.layer))}"


def _colouring(colouring: Colouring) -> Json:
    counts = np.bincount(colouring.codes, minlength=len(colouring.groups)).tolist()
    groups = [{"name": name, "count": count} for name, count in zip(colouring.groups, counts, strict=True)]
    codes = packed(colouring.codes, np.uint8)
    return {"name": colouring.name, "groups": groups, "codes": codes, "steps": colouring.in_steps}


def _same_texts(dataset: Dataset, summary: RunSummary) -> list[Json]:
    """Returns a table of texts that stand there more than once, over the whole run; none where no prompt does."""
    if TEXT not in dataset.column_names or summary.counts.unique == summary.counts.entries:
        return []
    counted = pc.value_counts(dataset.data.column(TEXT))
    repeated = counted.filter(pc.greater(counted.field("counts"), 1))
    most = np.argsort(-repeated.field("counts").to_numpy(), kind="stable")[:MOST_ROWS]
    shown = repeated.take(most).to_pylist()
    note = f"{len(repeated):,} texts stand there more than once; each was computed once."
    rows = [((f"{pair['counts']:,}", *_cut([pair["values"]])), ()) for pair in shown]
    return [table("Equal texts", ("times", "text"), rows, note=note)] if rows else []


def _near_duplicates(nearest: Neighbourhood, ids: list[str], texts: Texts, sampled: str) -> Json:
    rows = [
        ((f"{score:.3f}", ids[one], texts[one] or "", ids[other], texts[other] or ""), (one, other))
        for score, one, other in nearest.pairs(texts, MOST_ROWS)
    ]
    note = f"The pairs of different texts whose vectors are most similar (cosine, mean subtracted). {sampled}"
    return table("Near-duplicates", ("similarity", "id", "text", "id", "text"), rows, note=note)


def _outliers(nearest: Neighbourhood, ids: list[str], texts: Texts, sampled: str) -> Json:
    found = nearest.outliers(MOST_ROWS)
    rows = [((f"{score:.3f}", ids[row], texts[row] or ""), (row,)) for score, row in found]
    note = f"The entries least similar on average to their {NEAREST} nearest (cosine, mean subtracted). {sampled}"
    return table("Outliers", ("similarity", "id", "text"), rows, note=note)


def _rejected(folder: RunFolder, summary: RunSummary) -> list[Json]:
    """Returns a table of the first rejected rows; none where no row was."""
    if not summary.counts.rejected or not folder.rejected.exists():  # publish= leaves them out
        return []
    found = [
        JsonObject(folder.rejected, {}).as_object(line) for line in read_json_lines(folder.rejected, most=MOST_ROWS)
    ]
    rows = [(_cut([on_one_line(str(row.content.get(name))) for name in REJECTED]), ()) for row in found]
    note = f"The first of {summary.counts.rejected:,}; all are in rejected.jsonl." if len(found) == MOST_ROWS else ""
    return [table("Rejected rows", REJECTED, rows, note=note)]
