"""Hydra entry: the memories nearest to a query, in a finished run.

    python -m memvec.search output_dir=runs/a query="what music does she like?" k=10

In: a finished run and queries. Out: for each query the nearest memories: similarity, id, text.

    run -> mapped vectors -> index;  queries -> vectors, by the run's own model, layer and prompt -> nearest rows

The search reads every vector for every query, exactly, up to a million rows, and goes through a FAISS index above.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from memvec.cli import main
from memvec.config.values import one_of
from memvec.errors import ConfigError, json_on_one_line
from memvec.layout import RunLayout
from memvec.retrieval import EXACT_ROWS
from memvec.table import aligned, as_json

if TYPE_CHECKING:
    from memvec.retrieval.runs import Folders
    from memvec.retrieval.searcher import Hit, Searcher

_kept: list[tuple[tuple[Any, ...], Searcher]] = []
_kept_lock = threading.Lock()


def search(
    output_dir: Folders,
    queries: Sequence[str],
    *,
    k: int = 10,
    where: str | None = None,
    layer: int | None = None,
    center: bool = False,
    prompt: str | None = None,
    accelerator: str = "auto",
    exact_rows: int = EXACT_ROWS,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
) -> list[list[Hit]]:
    """Finds the memories nearest to each query, by a `Searcher` that is kept for the next call with the same settings.

    Args:
        output_dir: The folder of a finished run; or a list of several, which are searched as one.
        queries: Q texts, embedded with the run's own model, revision, layer and precision.
        k: How many memories for each query.
        where: An SQL condition that they fulfil, over the run's columns: `user = 'ana' and created_at >= '2024-05-01'`.
        layer: One of the run's; may be None where the run has one.
        center: Whether the mean of the run's vectors is subtracted from vectors and queries first.
        prompt: Name or template for the queries; None is the run's own.
        accelerator: As `trainer.accelerator`, for the queries.
        exact_rows: Up to so many rows the search is exact; above, it goes through a FAISS index.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled weights are refused.

    Returns:
        Q lists of at most k hits, the nearest first.

    Raises:
        ConfigError: An option does not make sense.
        ExtraError: An index is needed, and FAISS is not installed; or DuckDB, which `where` needs.
        InputError: A query cannot be used.
        ModelError: The run's model is gone.
        RunFolderError: There is no finished run, or a file of it is missing or damaged.
    """
    from memvec.retrieval.runs import named_folders
    from memvec.retrieval.searcher import Searcher

    options: dict[str, Any] = {
        "layer": layer,
        "center": center,
        "prompt": prompt,
        "accelerator": accelerator,
        "exact_rows": exact_rows,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": use_safetensors,
    }
    settings = (*(_state(RunLayout(folder)) for _, folder in named_folders(output_dir)), *options.items())
    with _kept_lock:
        if not _kept or _kept[0][0] != settings:
            _kept[:] = [(settings, Searcher(output_dir, **options))]
        searcher = _kept[0][1]
    return searcher.search(queries, k=k, where=where)


def _state(folder: RunLayout) -> tuple[Any, ...]:
    """Returns what is another where another run lies in a folder."""
    found = folder.manifest.stat() if folder.manifest.exists() else None
    return (folder.root, None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns))


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
                json_on_one_line({"query": query, "rank": rank, **_fields(hit)})
                for query, hits in answers
                for rank, hit in enumerate(hits, start=1)
            ]
        return [line for query, hits in answers for line in self._table(query, hits)]

    def _table(self, query: str, hits: list[Hit]) -> list[str]:
        run = ["run"] if any(hit.run for hit in hits) else []
        kept = list(dict.fromkeys(name for hit in hits for name in hit.columns))
        rows = [
            (
                f"{hit.score:.4f}",
                *(str(hit.run) for _ in run),
                str(hit.id),
                *(_cell(hit.columns.get(name)) for name in kept),
                hit.text or "",
            )
            for hit in hits
        ]
        table = aligned([("score", *run, "id", *kept, "text"), *rows], left=range(1, len(run) + len(kept) + 3))
        return table if len(self.queries) == 1 else [f"query: {query}", *table, ""]


def _fields(hit: Hit) -> dict[str, Any]:
    """Returns a hit as JSON has it; without columns where the run has kept none, without its run where that is one."""
    return {name: as_json(value) for name, value in asdict(hit).items() if name not in ("columns", "run") or value}


def _cell(value: Any) -> str:
    """Returns the value of a column as a table shows it."""
    plain = as_json(value)
    return plain if isinstance(plain, str) else "" if plain is None else json_on_one_line(plain)


def search_for_config(cfg: DictConfig) -> SearchResult:
    """Runs the queries of a configuration (conf/search.yaml)."""
    from memvec.retrieval.encoder import query_options
    from memvec.retrieval.queries import read_queries
    from memvec.retrieval.searcher import Searcher

    as_json = one_of("format", cfg.format, ("table", "jsonl")) == "jsonl"
    if (cfg.query is None) == (cfg.queries is None):
        found = "neither is set" if cfg.query is None else "both are set"
        raise ConfigError("query, queries", found=found, allowed="one text as query=, or a file of them as queries=")
    queries = [str(cfg.query)] if cfg.queries is None else [query.text for query in read_queries(str(cfg.queries))]
    options = query_options(cfg)
    searcher = Searcher(
        list(map(str, cfg.output_dir)) if OmegaConf.is_list(cfg.output_dir) else str(cfg.output_dir),
        layer=cfg.layer,
        center=cfg.center,
        prompt=options.prompt,
        accelerator=options.accelerator,
        exact_rows=cfg.exact_rows,
        trust_remote_code=options.trust_remote_code,
        use_safetensors=options.use_safetensors,
    )
    return SearchResult(queries, searcher.search(queries, k=cfg.k, where=cfg.where), as_json)


if __name__ == "__main__":
    main(search_for_config, config_name="search", parts="memvec.retrieval.searcher", sweeps=False)
