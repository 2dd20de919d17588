"""Finished runs that are searched, query after query.

In: a run's folder, or several, then queries. Out: for each query the nearest memories: similarity, id, text.

    run -> mapped vectors -> index;  queries -> vectors, by the run's own model, layer and prompt -> nearest rows

How: dataset, index and encoder are held, so that the second query loads nothing. The search reads every vector for
every query, exactly, up to a million rows, and goes through a FAISS index above.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memvec.config.prompts import named_prompt
from memvec.config.values import at_least, one_of
from memvec.data.texts import as_texts
from memvec.encoder import Encoder
from memvec.errors import RunFolderError
from memvec.prompt.template import Prompt
from memvec.retrieval import EXACT_ROWS
from memvec.retrieval.approximate import ApproximateIndex, JoinedIndex
from memvec.retrieval.encoder import QueryOptions, query_encoder, query_vectors
from memvec.retrieval.exact import ExactIndex, Vectors
from memvec.retrieval.queries import Id
from memvec.retrieval.runs import Folders, SearchedRun, SearchedRuns
from memvec.schema import ID, TEXT


@dataclass(frozen=True)
class Hit:
    """A memory that was found.

    Args:
        score: Cosine similarity with the query, -1 to 1.
        id: The memory's id.
        text: Its text; None where the run kept none.
        columns: The columns of the input that the run has kept (`data.keep_columns`), by their names.
        run: The folder of its run, as it was named, where several are searched; else None.
    """

    score: float
    id: Id
    text: str | None
    columns: dict[str, Any] = field(default_factory=dict, hash=False)
    run: str | None = None


class Searcher:
    """Finds memories in finished runs by cosine similarity; may be shared by threads.

    Args:
        output_dir: The run's folder; or a list of several, which are searched as one.
        layer: One of the run's; may be None where the run has one.
        center: Whether the mean of the run's vectors is subtracted from vectors and queries first.
        prompt: Name or template for the queries; None is the run's own.
        accelerator: As `trainer.accelerator`, for the queries.
        exact_rows: Up to so many rows the search is exact; above, it goes through a FAISS index.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled weights are refused.

    Raises:
        ConfigError: An option does not make sense.
        RunFolderError: There is no finished run, a file of it is missing or damaged, or runs have vectors that cannot
            be compared.
    """

    def __init__(
        self,
        output_dir: Folders,
        *,
        layer: int | None = None,
        center: bool = False,
        prompt: str | Prompt | None = None,
        accelerator: str = "auto",
        exact_rows: int = EXACT_ROWS,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
    ) -> None:
        self.center = one_of("center", center, (True, False))
        self.exact_rows = at_least("exact_rows", exact_rows, 0)
        own = Prompt(*named_prompt(prompt)) if isinstance(prompt, str) else prompt
        self.options = QueryOptions(own, accelerator, trust_remote_code, use_safetensors)
        self.runs = SearchedRuns(output_dir, layer=layer)
        self._index: ExactIndex | ApproximateIndex | JoinedIndex | None = None
        self._filtered: tuple[str, ExactIndex] | None = None
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()

    def search(self, queries: Sequence[str], *, k: int = 10, where: str | None = None) -> list[list[Hit]]:
        """Finds the memories nearest to each query.

        Args:
            queries: Q texts.
            k: How many memories for each.
            where: An SQL condition that they fulfil, over the run's columns but for the vectors. Such a search is
                exact, whatever `exact_rows` is.

        Returns:
            Q lists of at most k hits, the nearest first.

        Raises:
            ConfigError: `where` is no condition over columns that are there.
            ExtraError: An index is needed, and FAISS is not installed; or DuckDB, which `where` needs.
            InputError: A query cannot be used.
            ModelError: The run's model is gone.
            RunFolderError: The run's vectors or index cannot be used.
        """
        at_least("k", k, 1)
        index = self.index if where is None else self._index_where(where)
        vectors = self.encode(queries)
        found = []
        for scores, rows in index.nearest(vectors, k):
            if not np.isfinite(scores).all():
                raise RunFolderError.damaged(self._folders(), "a vector has no finite length")
            hits = zip(scores.tolist(), self.runs.rows_at(rows), strict=True)
            found.append([self._hit(score, run, row) for score, (run, row) in hits])
        return found

    def encode(self, queries: Sequence[str]) -> Vectors:
        """Returns the queries' vectors, `[Q, D]` float32.

        Raises:
            InputError: A query cannot be used.
            ModelError: The run's model is gone, or is another one now.
        """
        texts = as_texts(queries, name="queries")
        with self._lock:
            if self._encoder is None:
                self._encoder = query_encoder(self.runs.first.folder, self.runs.first.manifest, self.options)
        return query_vectors(self._encoder, self.runs.first.manifest, texts)[self.runs.first.layer]

    @property
    def index(self) -> ExactIndex | ApproximateIndex | JoinedIndex:
        """What finds the rows, made at its first use."""
        with self._lock:
            if self._index is None:
                if len(self.runs) > self.exact_rows:
                    each = [
                        ApproximateIndex(run.folder, run.dataset, center=self.center, column=run.column)
                        for run in self.runs.runs
                    ]
                    self._index = each[0] if len(each) == 1 else JoinedIndex(each)
                else:
                    self._index = ExactIndex(self.runs.vectors, center=self.center)
            return self._index

    def _index_where(self, where: str) -> ExactIndex:
        """Returns what finds the rows that a condition holds for; it is kept for the next query."""
        with self._lock:
            if self._filtered is None or self._filtered[0] != where:
                index = ExactIndex(self.runs.vectors, center=self.center, among=self.runs.rows_where(where))
                self._filtered = (where, index)
            return self._filtered[1]

    def _hit(self, score: float, run: SearchedRun, row: dict[str, Any]) -> Hit:
        kept = {name: row[name] for name in run.manifest.keep_columns}
        return Hit(score, row[ID], row.get(TEXT), kept, run.name if len(self.runs.runs) > 1 else None)

    def _folders(self) -> str:
        return ", ".join(str(run.folder.vectors) for run in self.runs.runs)

    def close(self) -> None:
        """Lets go of the model and the index; the next query loads them again."""
        with self._lock:
            if self._encoder is not None:
                self._encoder.close()
            self._encoder = self._index = self._filtered = None

    def __enter__(self) -> Searcher:
        """Returns the searcher itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Lets go of the model and the index."""
        self.close()
