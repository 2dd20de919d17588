"""Approximate search, for runs too large to read through for every query.

In: a loaded run. Out: a FAISS index beside its vectors, made once, and the nearest rows of a query through it.

How: `datasets` fills, saves and loads the index. It is an inverted file (vectors in about 4 * sqrt(N) lists around
k-means centres, a sixteenth of which a query looks into) of one byte a number, a quarter of the vectors. What it finds
is only a list of candidates: their similarities are computed anew from the vectors themselves, so that scores are exact
and only a row that the index did not offer can be missed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from memvec.errors import RunFolderError, one_line
from memvec.extras import import_extra
from memvec.files import atomic_file, make_folder
from memvec.quiet import without_dataset_bars
from memvec.retrieval.exact import Neighbours, Vectors, mapped_vectors, mean_vector, places_of, top_k
from memvec.run.folder import RunFolder
from memvec.schema import VECTOR
from memvec.units import as_units

NAME = "vectors"
ROWS_PER_LIST = 39  # FAISS's own minimum to train a centre on
LISTS_SEARCHED = 16  # one in so many
CANDIDATES = 10  # for every neighbour asked for

log = logging.getLogger(__name__)


class ApproximateIndex:
    """Finds rows through a FAISS index, which is built where there is none.

    Args:
        folder: The run's folder; the index lies in its `index/`.
        dataset: The run, loaded.
        center: Whether the vectors' mean is subtracted before they are compared; such an index is another one.
        column: Of the vectors in the run; each layer has an index of its own.

    Raises:
        ExtraError: FAISS is not installed.
        RunFolderError: The index cannot be written or read.
    """

    def __init__(self, folder: RunFolder, dataset: Dataset, *, center: bool, column: str = VECTOR) -> None:
        self._faiss: Any = import_extra("faiss", extra="search", purpose=f"a search in {len(dataset):,} vectors")
        self.column = column
        self.parts = mapped_vectors(dataset, column)
        self.rows = len(dataset)
        self._ends = np.cumsum([len(part) for part in self.parts])
        stem, layer = "centered" if center else "plain", column.removeprefix(VECTOR)
        self.path, mean_path = folder.index / f"{stem}{layer}.faiss", folder.index / f"mean{layer}.npy"
        self._dataset = dataset.with_format("numpy")
        try:
            make_folder(folder.index)
            if center and not mean_path.exists():
                with atomic_file(mean_path) as partial, partial.open("wb") as stream:
                    np.save(stream, mean_vector(self.parts))
            self.mean: Vectors | None = np.load(mean_path) if center else None
            if self.mean is not None and (self.mean.shape, self.mean.dtype) != (self.parts[0].shape[1:], np.float32):
                raise ValueError(f"{mean_path.name} is not the mean of these vectors")
            if not self.path.exists():
                self._build()
            else:
                self._dataset.load_faiss_index(NAME, str(self.path))
            found = self._dataset.get_index(NAME).faiss_index
            if (found.ntotal, found.d) != (self.rows, self.parts[0].shape[1]):
                raise ValueError(f"{self.path.name} is not of these vectors")
            lists = self._faiss.extract_index_ivf(found)
        except (OSError, RuntimeError, ValueError) as error:  # FAISS raises RuntimeError for a file it cannot read
            raise RunFolderError(folder.index, found=f"the index cannot be used: {one_line(error)}") from error
        lists.nprobe = max(min(LISTS_SEARCHED, lists.nlist), lists.nlist // LISTS_SEARCHED)

    def nearest(self, queries: Vectors, k: int) -> list[Neighbours]:
        """Finds the most similar rows, as `memvec.retrieval.exact.ExactIndex.nearest` does."""
        candidates = self._dataset.search_batch(NAME, queries, min(self.rows, CANDIDATES * k)).total_indices  # [Q, C]
        units = as_units(queries if self.mean is None else queries - self.mean)
        return [
            self._rank(unit, rows[(rows >= 0) & (rows < self.rows)], k)
            for unit, rows in zip(units, candidates, strict=True)
        ]

    def _rank(self, unit: Vectors, rows: NDArray[np.int64], k: int) -> Neighbours:
        """Returns the k best of some candidate rows for one query of length 1, `[D]`."""
        vectors = self._take(rows)
        scores, positions = top_k(as_units(vectors if self.mean is None else vectors - self.mean) @ unit, k)
        return scores, rows[positions]

    def _take(self, rows: NDArray[np.int64]) -> Vectors:
        """Returns some rows, `[R, D]`."""
        found = [self.parts[part][row] for part, row in places_of(rows, self._ends)]
        return np.stack(found).astype(np.float32, copy=False)

    def _build(self) -> None:
        """Trains the index on evenly spaced rows and fills it."""
        lists = max(1, min(int(4 * math.sqrt(self.rows)), self.rows // ROWS_PER_LIST))
        log.warning("building an index of %s vectors in %s, once", f"{self.rows:,}", self.path)
        dimension = self.parts[0].shape[1]
        index = self._faiss.index_factory(dimension, f"L2norm,IVF{lists},SQ8", self._faiss.METRIC_INNER_PRODUCT)
        if self.mean is not None:
            centering = self._faiss.CenteringTransform(dimension)
            self._faiss.copy_array_to_vector(self.mean, centering.mean)
            centering.is_trained = True
            centering.this.disown()  # the index deletes it
            index.prepend_transform(centering)
        index.train(self._take(np.linspace(0, self.rows - 1, min(self.rows, ROWS_PER_LIST * lists), dtype=np.int64)))
        with without_dataset_bars():
            self._dataset.add_faiss_index(self.column, NAME, custom_index=index)
        with atomic_file(self.path) as partial:
            self._dataset.save_faiss_index(NAME, str(partial))


class JoinedIndex:
    """Finds rows of several runs, each run's through its own index; rows are counted from the first run's on.

    Args:
        indexes: One a run. Where they centre, they rank by the mean of all runs from now on; which rows each offers
            still goes by its own.
    """

    def __init__(self, indexes: Sequence[ApproximateIndex]) -> None:
        self.indexes = indexes
        sizes = [index.rows for index in indexes]
        self._starts = np.cumsum([0, *sizes[:-1]])
        if means := [index.mean for index in indexes if index.mean is not None]:
            mean = np.average(means, axis=0, weights=sizes).astype(np.float32)
            for index in indexes:
                index.mean = mean

    def nearest(self, queries: Vectors, k: int) -> list[Neighbours]:
        """Finds the most similar rows, as `memvec.retrieval.exact.ExactIndex.nearest` does."""
        found = [index.nearest(queries, k) for index in self.indexes]
        return [self._best(of_each, k) for of_each in zip(*found, strict=True)]

    def _best(self, of_each: Sequence[Neighbours], k: int) -> Neighbours:
        """Returns the k best of what was found for one query in each run."""
        rows = [rows + start for (_, rows), start in zip(of_each, self._starts, strict=True)]
        scores, positions = top_k(np.concatenate([scores for scores, _ in of_each]), k)
        return scores, np.concatenate(rows)[positions]
