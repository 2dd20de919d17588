"""How well a ranking finds what is relevant: hit@1, hit@10, recall@10, MRR and nDCG@10.

In: similarities of queries with their candidates. Out: the mean of each measure over the queries. The measures are
torchmetrics', which Lightning brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from memvec.errors import InputError
from memvec.retrieval.exact import ExactIndex, Vectors
from memvec.retrieval.queries import Id, Query

MEASURES = ("hit@1", "hit@10", "recall@10", "MRR", "nDCG@10")
QUERIES_AT_ONCE = 64


def measure(scores: torch.Tensor, relevant: torch.Tensor) -> dict[str, float]:
    """Returns the measures of one query.

    Args:
        scores: Similarities with its C candidates, `[C]`.
        relevant: Which of them answer it, `[C]` bool, at least one.
    """
    # torchmetrics takes a score of 0 or less for "not found", and cosines may be negative: so the places speak.
    order = torch.argsort(scores, descending=True, stable=True)
    found, relevant = 1 / torch.arange(1, len(scores) + 1), relevant[order]
    values = (
        retrieval_hit_rate(found, relevant, top_k=1),
        retrieval_hit_rate(found, relevant, top_k=10),
        retrieval_recall(found, relevant, top_k=10),
        retrieval_reciprocal_rank(found, relevant),
        retrieval_normalized_dcg(found, relevant, top_k=10),
    )
    return dict(zip(MEASURES, map(float, values), strict=True))


def mean_measures(index: ExactIndex, vectors: Vectors, queries: Sequence[Query], ids: Sequence[Id]) -> dict[str, float]:
    """Returns the measures' means over all queries.

    Args:
        index: The memories, N.
        vectors: The queries', `[Q, D]`.
        queries: What is relevant to each, and where it is looked for; `check_relevant` has let them pass.
        ids: The memories' ids, N.
    """
    rows = {name: row for row, name in enumerate(ids)}
    names = np.asarray([str(name) for name in ids])
    candidates: dict[str, NDArray[np.int64]] = {}
    found = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = queries[start : start + QUERIES_AT_ONCE]
        for query, scores in zip(some, index.scores(vectors[start : start + len(some)]), strict=True):
            if query.within not in candidates:
                candidates[query.within] = np.flatnonzero(np.char.startswith(names, query.within))
            among = candidates[query.within]
            relevant = np.isin(among, [rows[name] for name in query.relevant])
            found.append(measure(torch.from_numpy(scores[among]), torch.from_numpy(relevant)))
    return {name: float(np.mean([values[name] for values in found])) for name in MEASURES}


def check_relevant(queries: Sequence[Query], ids: Iterable[Id], *, where: str | None = None) -> None:
    """Refuses queries that no ranking could answer in full, which would only seem to be answered badly.

    Args:
        queries: What is relevant to each, and where it is looked for.
        ids: The memories' ids.
        where: The condition that these fulfil, for the message.

    Raises:
        InputError: A relevant id is not among the run's, or not among a query's candidates.
    """
    known = set(ids)
    where = "" if where is None else f" where {where}"
    for query in queries:
        for name in query.relevant:
            if name not in known:
                found = f"the relevant id {name!r} is not among the run's {len(known):,} ids{where}"
                raise InputError(query.place, found=found)
            if not str(name).startswith(query.within):
                raise InputError(query.place, found=f"the relevant id {name!r} does not begin with {query.within!r}")
