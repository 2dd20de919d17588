"""A finished run that is searched, query after query.

In: a run's folder, then queries. Out: for each query the nearest memories: similarity, id, text.

    run -> mapped vectors -> index;  queries -> vectors, by the run's own model, layer and prompt -> nearest rows

How: dataset, index and encoder are held, so that the second query loads nothing. The search reads every vector for
every query, exactly, up to a million rows, and goes through a FAISS index above.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from memvec.config.prompts import named_prompt
from memvec.config.values import at_least, one_of
from memvec.data.texts import as_texts
from memvec.encoder import Encoder
from memvec.errors import ConfigError, RunFolderError
from memvec.prompt.template import Prompt
from memvec.retrieval.approximate import ApproximateIndex
from memvec.retrieval.encoder import QueryOptions, query_encoder, query_vectors
from memvec.retrieval.exact import ExactIndex, Vectors, mapped_vectors
from memvec.retrieval.queries import Id
from memvec.run.folder import RunFolder
from memvec.run.manifest import read_manifest
from memvec.run.remote import local_run
from memvec.run.result import load
from memvec.schema import ID, TEXT

EXACT_ROWS = 1_000_000


@dataclass(frozen=True)
class Hit:
    """A memory that was found.

    Args:
        score: Cosine similarity with the query, -1 to 1.
        id: The memory's id.
        text: Its text; None where the run kept none.
    """

    score: float
    id: Id
    text: str | None


class Searcher:
    """Finds memories in a finished run by cosine similarity; may be shared by threads.

    Args:
        output_dir: The run's folder.
        layer: One of the run's; may be None where the run has one.
        center: Whether the mean of the run's vectors is subtracted from vectors and queries first.
        prompt: Name or template for the queries; None is the run's own.
        accelerator: As `trainer.accelerator`, for the queries.
        exact_rows: Up to so many rows the search is exact; above, it goes through a FAISS index.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled weights are refused.

    Raises:
        ConfigError: An option does not make sense.
        RunFolderError: There is no finished run, or a file of it is missing or damaged.
    """

    def __init__(
        self,
        output_dir: str | Path,
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
        self.folder = RunFolder(local_run(output_dir))
        self.manifest = read_manifest(self.folder)
        columns = self.manifest.columns(layer)
        if len(columns) > 1:
            shown = ", ".join(map(str, columns))
            raise ConfigError(f"layer is not set, and {self.folder.root} holds several; allowed: layer=N, N of {shown}")
        [(self.layer, self.column)] = columns.items()
        self.dataset: Dataset = load(self.folder.root)
        self._index: ExactIndex | ApproximateIndex | None = None
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()

    def search(self, queries: Sequence[str], *, k: int = 10) -> list[list[Hit]]:
        """Finds the memories nearest to each query.

        Args:
            queries: Q texts.
            k: How many memories for each.

        Returns:
            Q lists of at most k hits, the nearest first.

        Raises:
            ExtraError: An index is needed, and FAISS is not installed.
            InputError: A query cannot be used.
            ModelError: The run's model is gone.
            RunFolderError: The run's vectors or index cannot be used.
        """
        at_least("k", k, 1)
        vectors = self.encode(queries)
        columns = [name for name in (ID, TEXT) if name in self.dataset.column_names]
        texts = self.dataset.with_format(None).select_columns(columns)
        found = []
        for scores, rows in self.index.nearest(vectors, k):
            if not np.isfinite(scores).all():
                raise RunFolderError(f"{self.folder.vectors}: damaged, or not of memvec: a vector has no finite length")
            hits = zip(scores.tolist(), texts.select(rows), strict=True)
            found.append([Hit(score, row[ID], row.get(TEXT)) for score, row in hits])
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
                self._encoder = query_encoder(self.folder, self.manifest, self.options)
        return query_vectors(self._encoder, self.manifest, texts)[self.layer]

    @property
    def index(self) -> ExactIndex | ApproximateIndex:
        """What finds the rows, made at its first use."""
        with self._lock:
            if self._index is None:
                if len(self.dataset) > self.exact_rows:
                    self._index = ApproximateIndex(self.folder, self.dataset, center=self.center, column=self.column)
                else:
                    self._index = ExactIndex(mapped_vectors(self.dataset, self.column), center=self.center)
            return self._index

    def close(self) -> None:
        """Lets go of the model and the index; the next query loads them again."""
        with self._lock:
            if self._encoder is not None:
                self._encoder.close()
            self._encoder = self._index = None

    def __enter__(self) -> Searcher:
        """Returns the searcher itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Lets go of the model and the index."""
        self.close()
