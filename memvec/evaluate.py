"""Hydra entry: how well a run's vectors find the memories that answer a query.

    python -m memvec.evaluate output_dir=runs/a queries=questions.jsonl

In: a finished run, or a sweep's folder of them, and queries that name their relevant ids. Out: hit@1, hit@10,
recall@10, MRR and nDCG@10, in `evaluation.json` of each run; of a sweep, and of a run of several layers, also a table
and a plot that say which layer and prompt are best.

    queries -> vectors, by each run's own model, layer and prompt -> similarity with every memory -> measures
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from memvec.cli import main
from memvec.config.values import one_of, one_text
from memvec.files import write_json


@dataclass(frozen=True)
class Evaluated:
    """What was measured, as lines."""

    printed: list[str]

    def lines(self) -> list[str]:
        """Returns what is printed."""
        return self.printed


def evaluate(cfg: DictConfig) -> Evaluated:
    """Evaluates a run, or every finished run of a sweep (conf/evaluate.yaml).

    Raises:
        MemvecError: The folder, the queries or the model cannot be used; the message says why.
    """
    from memvec.retrieval.comparison import evaluation_rows, write_comparison
    from memvec.retrieval.encoder import query_options
    from memvec.retrieval.evaluation import evaluate_run
    from memvec.retrieval.queries import read_judged_queries
    from memvec.run.folder import RunFolder
    from memvec.run.remote import local_run
    from memvec.sweep.table import finished_jobs

    one_of("center", cfg.center, (True, False))
    folder = RunFolder(local_run(one_text("output_dir", cfg.output_dir)))
    queries = read_judged_queries(str(cfg.queries))
    jobs = [folder] if folder.manifest.exists() or folder.journal.is_dir() else finished_jobs(folder.root)
    for job in jobs:
        options = query_options(cfg)
        result = evaluate_run(job, queries, options, layer=cfg.layer, center=cfg.center, where=cfg.where)
        write_json(job.evaluation, {**result, "file": str(cfg.queries)})
    if jobs != [folder] or "layers" in result:
        return Evaluated(write_comparison(folder.root, evaluation_rows(jobs)))
    measures = [f"{name:<10} {value:.4f}" for name, value in result["measures"].items()]
    return Evaluated([f"queries    {len(queries):,}", *measures, f"written    {folder.evaluation}"])


if __name__ == "__main__":
    main(evaluate, config_name="evaluate", parts="memvec.retrieval.evaluation", sweeps=False)
