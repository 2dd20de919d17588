"""Hydra entry: the memories nearest to a query, in a finished run.

    python -m memvec.search output_dir=runs/a query="what music does she like?" k=10

In: a finished run and queries. Out: for each query the nearest memories: similarity, id, text.

    run -> mapped vectors -> index;  queries -> vectors, by the run's own model, layer and prompt -> nearest rows

The search reads every vector for every query, exactly, up to a million rows, and goes through a FAISS index above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig

from memvec.api import load
from memvec.cli import main
from memvec.config.prompts import prompt_config
from memvec.config.values import at_least, one_of
from memvec.errors import ConfigError, json_on_one_line
from memvec.retrieval.approximate import ApproximateIndex
from memvec.retrieval.encoder import QueryEncoder, query_encoder
from memvec.retrieval.exact import ExactIndex, mapped_vectors
from memvec.retrieval.queries import Id, read_queries
from memvec.run.folder import RunFolder
from memvec.schema import ID, TEXT
from memvec.table import aligned

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


def search(
    output_dir: str | Path,
    queries: Sequence[str],
    *,
    k: int = 10,
    center: bool = False,
    prompt: str | None = None,
    accelerator: str = "auto",
    exact_rows: int = EXACT_ROWS,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
) -> list[list[Hit]]:
    """Finds the memories nearest to each query by cosine similarity.

    Args:
        output_dir: The folder of a finished run.
        queries: Q texts, embedded with the run's own model, revision, layer and precision.
        k: How many memories for each query.
        center: Whether the mean of the run's vectors is subtracted from vectors and queries first.
        prompt: Name or template for the queries; None is the run's own.
        accelerator: As `trainer.accelerator`, for the queries.
        exact_rows: Up to so many rows the search is exact; above, it goes through a FAISS index.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled weights are refused.

    Returns:
        Q lists of at most k hits, the nearest first.

    Raises:
        ExtraError: An index is needed, and FAISS is not installed.
        InputError: A query cannot be used.
        ModelError: The run's model is gone.
        RunFolderError: There is no finished run.
    """
    group = None if prompt is None else prompt_config(prompt)
    encoder = QueryEncoder(group, accelerator, trust_remote_code, use_safetensors)
    return _search(RunFolder(output_dir), queries, encoder, k=k, center=center, exact_rows=exact_rows)


def _search(
    folder: RunFolder, queries: Sequence[str], encoder: QueryEncoder, *, k: int, center: bool, exact_rows: int
) -> list[list[Hit]]:
    at_least("k", k, 1)
    at_least("exact_rows", exact_rows, 0)
    one_of("center", center, (True, False))
    dataset = load(folder.root)
    if len(dataset) > exact_rows:
        index: ApproximateIndex | ExactIndex = ApproximateIndex(folder, dataset, center=center)
    else:
        index = ExactIndex(mapped_vectors(dataset), center=center)
    neighbours = index.nearest(encoder.encode(folder, queries).numpy(), k)
    texts = dataset.with_format(None).select_columns([name for name in (ID, TEXT) if name in dataset.column_names])
    return [
        [Hit(score, row[ID], row.get(TEXT)) for score, row in zip(scores.tolist(), texts.select(rows), strict=True)]
        for scores, rows in neighbours
    ]


@dataclass(frozen=True)
class SearchResult:
    """What was found for each query.

    Args:
        queries: Q texts.
        hits: What was found for each.
        as_json: Whether `lines` are JSON, one a hit; else tables.
    """

    queries: list[str]
    hits: list[list[Hit]]
    as_json: bool

    def lines(self) -> list[str]:
        """Returns what is printed."""
        answers = zip(self.queries, self.hits, strict=True)
        if self.as_json:
            return [
                json_on_one_line({"query": query, "rank": rank, **asdict(hit)})
                for query, hits in answers
                for rank, hit in enumerate(hits, start=1)
            ]
        return [line for query, hits in answers for line in self._table(query, hits)]

    def _table(self, query: str, hits: list[Hit]) -> list[str]:
        rows = [(f"{hit.score:.4f}", str(hit.id), hit.text or "") for hit in hits]
        table = aligned([("score", "id", "text"), *rows], left=(1, 2))
        return table if len(self.queries) == 1 else [f"query: {query}", *table, ""]


def search_for_config(cfg: DictConfig) -> SearchResult:
    """Runs the queries of a configuration (conf/search.yaml)."""
    as_json = one_of("format", cfg.format, ("table", "jsonl")) == "jsonl"
    if (cfg.query is None) == (cfg.queries is None):
        found = "neither query nor queries is set" if cfg.query is None else "both query and queries are set"
        raise ConfigError(f"{found}; allowed: one text as query=, or a file of them as queries=")
    queries = [str(cfg.query)] if cfg.queries is None else [query.text for query in read_queries(str(cfg.queries))]
    hits = _search(
        RunFolder(str(cfg.output_dir)),
        queries,
        query_encoder(cfg),
        k=cfg.k,
        center=cfg.center,
        exact_rows=cfg.exact_rows,
    )
    return SearchResult(queries, hits, as_json)


if __name__ == "__main__":
    main(search_for_config, config_name="search", sweeps=False)
