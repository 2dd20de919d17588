"""The map: neighbours stay neighbours, and no input is too small or too strange for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.runs import random_vectors

pytest.importorskip("sklearn")

from memvec.page.projection import clusters, positions, principal_components
from memvec.retrieval.exact import as_units


@pytest.fixture(scope="module")
def topics() -> NDArray[np.int64]:
    return np.repeat(np.arange(5), 60)


@pytest.fixture(scope="module")
def components(topics: NDArray[np.int64]) -> NDArray[np.float32]:
    """Entries around five topics."""
    centres = np.random.default_rng(1).standard_normal((5, 30)).astype(np.float32) * 3
    return principal_components(as_units(centres[topics] + random_vectors(300, 30) * 0.2))


def test_entries_of_a_topic_lie_together(components: NDArray[np.float32], topics: NDArray[np.int64]) -> None:
    places = positions(components)
    assert places.min() >= 0
    assert places.max() <= 1
    assert (places.max(axis=0) - places.min(axis=0)).max() == pytest.approx(1)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(300)
    assert (topics[distance.argmin(axis=1)] == topics).mean() > 0.98


def test_the_same_vectors_give_the_same_map(components: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(positions(components[:80]), positions(components[:80]))


def test_clusters_are_topics_named_by_an_entry_within(
    components: NDArray[np.float32], topics: NDArray[np.int64]
) -> None:
    labels, central = clusters(components)
    assert np.all(np.diff(np.bincount(labels)) <= 0)  # the largest first
    for label, row in enumerate(central):
        assert labels[row] == label
        assert len(set(topics[labels == label])) == 1  # none mixes two topics


@pytest.mark.parametrize("rows", [1, 2, 3, 9, 10, 31])
@pytest.mark.parametrize("equal", [False, True])
def test_few_or_equal_vectors_have_a_map_too(rows: int, equal: bool) -> None:
    vectors = np.ones((rows, 8), dtype=np.float32) if equal else as_units(random_vectors(rows, 8))
    components = principal_components(vectors - vectors.mean(axis=0))
    places = positions(components)
    labels, central = clusters(components)
    assert places.shape == (rows, 2)
    assert np.isfinite(places).all()
    assert set(labels.tolist()) == set(range(len(central)))
