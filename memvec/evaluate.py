"""Hydra entry: how well a run's vectors find the memories that answer a query.

    python -m memvec.evaluate output_dir=runs/a queries=questions.jsonl

In: a finished run, or a sweep's folder of them, and queries that name their relevant ids. Out: hit@1, hit@10,
recall@10, MRR and nDCG@10, in `evaluation.json` of each run; of a sweep, and of a run of several layers, also a table
and a plot that say which layer and prompt are best.

    queries -> vectors, by each run's own model, layer and prompt -> similarity with every memory -> measures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from memvec.cli import main
from memvec.config.values import one_of, one_text
from memvec.files import write_json
from memvec.retrieval.comparison import evaluation_rows, write_comparison
from memvec.retrieval.encoder import QueryOptions, query_encoder, query_options, query_vectors
from memvec.retrieval.exact import ExactIndex, mapped_vectors
from memvec.retrieval.filter import rows_where
from memvec.retrieval.measures import check_relevant, mean_measures
from memvec.retrieval.queries import Query, read_judged_queries
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from memvec.run.remote import local_run
from memvec.run.result import load
from memvec.schema import ID
from memvec.sweep.table import finished_jobs


@dataclass(frozen=True)
class Evaluated:
    """What was measured, as lines."""

    printed: list[str]

    def lines(self) -> list[str]:
        """Returns what is printed."""
        return self.printed


def evaluate(cfg: DictConfig) -> Evaluated:
    """Evaluates a run, or every finished run of a sweep (conf/evaluate.yaml).

    Raises:
        MemvecError: The folder, the queries or the model cannot be used; the message says why.
    """
    one_of("center", cfg.center, (True, False))
    folder = RunFolder(local_run(one_text("output_dir", cfg.output_dir)))
    queries = read_judged_queries(str(cfg.queries))
    jobs = [folder] if folder.manifest.exists() or folder.journal.is_dir() else finished_jobs(folder.root)
    for job in jobs:
        options = query_options(cfg)
        result = evaluate_run(job, queries, options, layer=cfg.layer, center=cfg.center, where=cfg.where)
        write_json(job.evaluation, {**result, "file": str(cfg.queries)})
    if jobs != [folder] or "layers" in result:
        return Evaluated(write_comparison(folder.root, evaluation_rows(jobs)))
    measures = [f"{name:<10} {value:.4f}" for name, value in result["measures"].items()]
    return Evaluated([f"queries    {len(queries):,}", *measures, f"written    {folder.evaluation}"])


def evaluate_run(
    folder: RunFolder,
    queries: Sequence[Query],
    options: QueryOptions,
    *,
    layer: int | None = None,
    center: bool,
    where: str | None = None,
) -> dict[str, Any]:
    """Returns what `evaluation.json` holds of one run.

    Args:
        folder: A finished run.
        queries: Texts, and the ids that answer them.
        options: How the texts are embedded.
        layer: One of the run's; None is all of them.
        center: Whether the vectors' mean is subtracted from vectors and queries first.
        where: An SQL condition over the run's columns; the queries are looked for among the rows it holds for.
    """
    manifest = read_manifest(folder)
    columns = manifest.columns(layer)
    dataset = load(folder.root)
    among = None if where is None else rows_where(dataset, where)
    ids = (dataset if among is None else dataset.select(np.flatnonzero(among))).with_format(None)[ID][:]
    check_relevant(queries, ids, where=where)
    with query_encoder(folder, manifest, options) as encoder:
        vectors = query_vectors(encoder, manifest, [query.text for query in queries])
    layers = []
    for name, column in columns.items():
        index = ExactIndex(mapped_vectors(dataset, column), center=center, among=among)
        layers.append({"layer": name, "measures": mean_measures(index, vectors[name], queries, ids)})
    return {
        "queries": len(queries),
        "center": center,
        "where": where,
        "prompt": None if options.prompt is None else options.prompt.template,
        **({"layers": layers} if len(layers) > 1 else layers[0]),
    }


if __name__ == "__main__":
    main(evaluate, config_name="evaluate", sweeps=False)
