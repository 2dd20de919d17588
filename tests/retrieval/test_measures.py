"""The measures, against their definitions, and which memories a query is looked for among."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from memvec.errors import InputError
from memvec.retrieval.exact import ExactIndex
from memvec.retrieval.measures import MEASURES, check_relevant, mean_measures, measure
from memvec.retrieval.queries import Query
from tests.helpers.refusals import refused
from tests.helpers.runs import random_vectors


def by_definition(ranked: Sequence[bool]) -> dict[str, float]:
    """Computes the measures of a ranking, the best first, as the textbook has them."""
    places = [place for place, relevant in enumerate(ranked, start=1) if relevant]
    gain = sum(1 / math.log2(place + 1) for place in places if place <= 10)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(places), 10) + 1))
    within_ten = sum(place <= 10 for place in places)
    values = (places[0] == 1, places[0] <= 10, within_ten / len(places), 1 / places[0], gain / ideal)
    return dict(zip(MEASURES, map(float, values), strict=True))


@pytest.mark.parametrize("relevant", [[0], [3], [10], [29], [0, 1, 2], [2, 9, 10, 25], list(range(5, 25))])
def test_measures_are_those_of_the_definition(relevant: list[int]) -> None:
    ranked = [place in relevant for place in range(30)]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    scores, hits = torch.empty(30), torch.empty(30, dtype=torch.bool)
    scores[order], hits[order] = torch.linspace(1, -1, 30), torch.tensor(ranked)
    assert measure(scores, hits) == pytest.approx(by_definition(ranked), abs=1e-6)


def test_a_query_is_looked_for_within_its_prefix() -> None:
    vectors = random_vectors(40)
    ids = [f"{'near' if row % 2 else 'far'}/{row}" for row in range(40)]
    index = ExactIndex([vectors], center=False)
    scores = index.scores(vectors[:1])[0]
    best_near = max((row for row in range(40) if row % 2), key=lambda row: scores[row])
    query = Query("q", frozenset([ids[best_near]]), "near/")
    assert mean_measures(index, vectors[:1], [query], ids)["hit@1"] == 1
    everywhere = Query("q", frozenset([ids[best_near]]))
    assert mean_measures(index, vectors[:1], [everywhere], ids)["hit@1"] == 0  # row 0 itself is nearest


def test_the_mean_is_over_all_queries_in_any_groups() -> None:
    vectors = random_vectors(150)
    index = ExactIndex([vectors], center=True)
    ids = list(range(150))
    queries = [Query("q", frozenset([row if row < 100 else (row + 75) % 150])) for row in ids]
    found = mean_measures(index, vectors, queries, ids)
    assert found["hit@1"] == pytest.approx(100 / 150)
    ranks = [
        1 + int((scores > scores[min(query.relevant)]).sum())
        for query, scores in zip(queries, index.scores(vectors), strict=True)
    ]
    assert found["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_ids_that_no_ranking_can_find_are_refused() -> None:
    queries = [Query("q", frozenset(["a/1"]), "b/", "q.jsonl, row 1")]
    with refused(InputError, "q.jsonl, row 1", found="the relevant id 'a/1' does not begin with 'b/'"):
        check_relevant(queries, ["a/1", "b/1"])
    with refused(InputError, "q.jsonl, row 1", found="the relevant id 'a/1' is not among the run's 1 ids"):
        check_relevant(queries, ["b/1"])
    check_relevant([Query("q", frozenset([3]), "")], [1, 2, 3])
