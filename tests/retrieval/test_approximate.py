"""The FAISS index: what it finds, that it is kept, and what is said where it cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import memvec
from memvec.errors import ExtraError, RunFolderError
from memvec.retrieval.approximate import ApproximateIndex
from memvec.retrieval.exact import ExactIndex
from memvec.run.folder import RunFolder
from tests.helpers.refusals import refused
from tests.helpers.runs import random_vectors, write_run

# FAISS is made with SWIG, whose types have no __module__.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    """Rows around 40 centres, as memories lie around topics."""
    choose = np.random.default_rng(0)
    centres = random_vectors(40, 24)
    noise = choose.standard_normal((3000, 24), dtype=np.float32)
    return centres[choose.integers(0, 40, 3000)] + np.float32(0.3) * noise


@pytest.fixture
def folder(vectors: NDArray[np.float32], tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "run", vectors)


@pytest.mark.parametrize("center", [False, True])
def test_it_finds_nearly_all_that_the_exact_search_finds(
    center: bool, folder: RunFolder, vectors: NDArray[np.float32]
) -> None:
    pytest.importorskip("faiss")
    queries = vectors[::100] + np.float32(0.05)
    exact = ExactIndex([vectors], center=center).nearest(queries, 10)
    found = ApproximateIndex(folder, memvec.load(folder.root), center=center).nearest(queries, 10)
    shared = 0
    for (scores, rows), (exact_scores, exact_rows) in zip(found, exact, strict=True):
        known = dict(zip(exact_rows.tolist(), exact_scores.tolist(), strict=True))
        shared += len(set(rows.tolist()) & set(known))
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            assert score == pytest.approx(known.get(row, score), abs=1e-5)
    assert shared >= 0.9 * 10 * len(queries)


def test_it_is_made_once_and_kept_beside_the_vectors(folder: RunFolder) -> None:
    pytest.importorskip("faiss")
    dataset = memvec.load(folder.root)
    first = ApproximateIndex(folder, dataset, center=True)
    made = first.path.stat().st_mtime_ns
    assert first.path.parent == folder.root / "index"
    again = ApproximateIndex(folder, memvec.load(folder.root), center=True)
    assert again.path.stat().st_mtime_ns == made
    queries = random_vectors(3, 24, seed=2)
    for (scores, rows), (same_scores, same_rows) in zip(
        first.nearest(queries, 5), again.nearest(queries, 5), strict=True
    ):
        assert rows.tolist() == same_rows.tolist()
        np.testing.assert_array_equal(scores, same_scores)


def test_a_broken_index_is_named(folder: RunFolder) -> None:
    pytest.importorskip("faiss")
    folder.index.mkdir()
    (folder.index / "plain.faiss").write_bytes(b"not an index")
    with refused(RunFolderError, "index", found="the index cannot be used"):
        ApproximateIndex(folder, memvec.load(folder.root), center=False)


def test_without_faiss_the_extra_is_named(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with refused(ExtraError, found="needs faiss, which is missing", advice="pip install 'memvec[search]'"):
        ApproximateIndex(folder, memvec.load(folder.root), center=False)
