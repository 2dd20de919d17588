"""Exact search against a plain computation of every cosine in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import memvec
from memvec.retrieval import exact
from memvec.retrieval.exact import ExactIndex, mapped_vectors, top_k
from tests.helpers.runs import random_vectors, write_run


def cosines(vectors: NDArray[np.float32], queries: NDArray[np.float32], *, center: bool) -> NDArray[np.float64]:
    rows, wanted = vectors.astype(np.float64), queries.astype(np.float64)
    if center:
        rows, wanted = rows - vectors.mean(axis=0, dtype=np.float64), wanted - vectors.mean(axis=0, dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    return wanted @ rows.T


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("parts", [1, 7])
def test_the_nearest_are_those_of_the_plain_computation(center: bool, parts: int) -> None:
    vectors, queries = random_vectors(1000), random_vectors(9, seed=1)
    expected = cosines(vectors, queries, center=center)
    found = ExactIndex(np.array_split(vectors, parts), center=center).nearest(queries, 10)
    for (scores, rows), truth in zip(found, expected, strict=True):
        assert rows.tolist() == np.argsort(-truth, kind="stable")[:10].tolist()
        np.testing.assert_allclose(scores, truth[rows], atol=2e-6)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.01, 1.0])
def test_among_some_rows_the_nearest_are_the_best_of_those(center: bool, share: float) -> None:
    vectors, queries = random_vectors(1000), random_vectors(9, seed=1)
    among = np.random.default_rng(2).random(1000) < share
    expected = cosines(vectors, queries, center=center)  # the mean is that of all rows
    index = ExactIndex(np.array_split(vectors, 3), center=center, among=among)
    for (scores, rows), truth in zip(index.nearest(queries, 20), expected, strict=True):
        best = [row for row in np.argsort(-truth, kind="stable").tolist() if among[row]][:20]
        assert rows.tolist() == best
        np.testing.assert_allclose(scores, truth[rows], atol=2e-6)
    np.testing.assert_allclose(index.scores(queries), expected[:, among], atol=2e-6)


def test_among_no_rows_nothing_is_nearest() -> None:
    index = ExactIndex([random_vectors(10)], center=True, among=np.zeros(10, dtype=bool))
    assert [len(rows) for _, rows in index.nearest(random_vectors(2), 5)] == [0, 0]


def test_groups_of_queries_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = random_vectors(300), random_vectors(11, seed=1)
    index = ExactIndex([vectors], center=True)
    whole = index.nearest(queries, 5)
    monkeypatch.setattr(exact, "SCORES_IN_MEMORY", 700)  # two queries at once
    for (scores, rows), (same_scores, same_rows) in zip(whole, index.nearest(queries, 5), strict=True):
        assert rows.tolist() == same_rows.tolist()
        np.testing.assert_allclose(scores, same_scores, atol=1e-6)


def test_centring_stays_exact_where_the_mean_dominates() -> None:
    vectors = random_vectors(200) + np.float32(3000)
    truth = cosines(vectors, vectors[:5], center=True)
    for (scores, rows), expected in zip(ExactIndex([vectors], center=True).nearest(vectors[:5], 3), truth, strict=True):
        np.testing.assert_allclose(scores, expected[rows], atol=2e-3)  # the vectors themselves hold no more digits


def test_a_vector_of_zeros_is_similar_to_nothing() -> None:
    vectors = random_vectors(4)
    vectors[2] = 0
    scores = ExactIndex([vectors], center=False).scores(np.stack([vectors[0], vectors[2]]))
    assert scores[0, 2] == 0
    assert scores[1].tolist() == [0, 0, 0, 0]


def test_more_neighbours_than_rows_are_all_rows() -> None:
    scores, rows = ExactIndex([random_vectors(3)], center=False).nearest(random_vectors(1), 10)[0]
    assert sorted(rows.tolist()) == [0, 1, 2]
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_of_equal_scores_the_first_row_stands_first() -> None:
    scores, positions = top_k(np.asarray([0.5, 1, 0.5, 1, 0], dtype=np.float32), 4)
    assert positions.tolist() == [1, 3, 0, 2]
    assert scores.tolist() == [1, 1, 0.5, 0.5]


def test_a_runs_vectors_are_mapped_and_not_copied(tmp_path: Path) -> None:
    vectors = random_vectors(2500)
    folder = write_run(tmp_path / "run", vectors)
    parts = mapped_vectors(memvec.load(folder.root))
    assert not any(part.flags.owndata or part.flags.writeable for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), vectors)
