"""The nearest, the near-duplicates and the outliers of a page."""

from __future__ import annotations

import numpy as np

from memvec.page.neighbours import NEAREST, neighbourhood
from tests.helpers.runs import random_vectors


def test_the_nearest_of_an_entry_are_others_by_centred_cosine() -> None:
    vectors = random_vectors(60)
    found = neighbourhood(vectors)
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = centred @ centred.T - 9 * np.eye(60)
    for row in range(60):
        assert found.rows[row].tolist() == np.argsort(-cosines[row])[:NEAREST].tolist()


def test_equal_vectors_are_each_others_nearest() -> None:
    vectors = np.repeat(random_vectors(2), 15, axis=0)
    found = neighbourhood(vectors)
    for row in range(30):
        assert row not in found.rows[row]
        assert set(found.rows[row].tolist()) <= set(range(row // 15 * 15, row // 15 * 15 + 15))


def test_near_duplicates_are_pairs_of_different_texts_each_once() -> None:
    vectors = random_vectors(40)
    vectors[11] = vectors[3] + np.float32(1e-3)
    vectors[21] = vectors[20]
    texts: list[str | None] = [f"text {row}" for row in range(40)]
    texts[21] = texts[20]
    pairs = neighbourhood(vectors).pairs(texts, 15)
    assert pairs[0][1:] == (3, 11)
    assert len({pair[1:] for pair in pairs}) == 15
    assert all(one < other for _, one, other in pairs)
    assert (20, 21) not in [pair[1:] for pair in pairs]
    without_texts = neighbourhood(vectors).pairs([None] * 40, 15)
    assert (20, 21) in [pair[1:] for pair in without_texts]


def test_outliers_are_least_similar_to_their_nearest() -> None:
    vectors = np.repeat(random_vectors(3), 12, axis=0) + random_vectors(36, seed=1) * np.float32(0.02)
    vectors[17] = -8 * np.linspace(-1, 1, 16, dtype=np.float32) ** 3
    outliers = neighbourhood(vectors).outliers(5)
    assert outliers[0][1] == 17
    assert [score for score, _ in outliers] == sorted(score for score, _ in outliers)


def test_one_or_two_entries_have_no_or_one_neighbour() -> None:
    assert neighbourhood(random_vectors(1)).rows.shape == (1, 0)
    assert neighbourhood(random_vectors(1)).outliers(5) == []
    assert neighbourhood(random_vectors(1)).pairs(["a"], 5) == []
    assert neighbourhood(random_vectors(2)).rows.tolist() == [[1], [0]]
