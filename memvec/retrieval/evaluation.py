"""How well a run's vectors find the memories that answer a query: what `evaluation.json` holds of one run.

In: a finished run, and queries that name their relevant ids. Out: the measures of each layer.

    queries -> vectors, by the run's own model, layer and prompt -> similarity with every memory -> measures
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memvec.retrieval.encoder import QueryOptions, query_encoder, query_vectors
from memvec.retrieval.exact import ExactIndex, mapped_vectors
from memvec.retrieval.filter import rows_where
from memvec.retrieval.measures import check_relevant, mean_measures
from memvec.retrieval.queries import Query
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from memvec.run.result import load
from memvec.schema import ID


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
