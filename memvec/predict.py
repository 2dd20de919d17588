"""Hydra entry: memory texts in, vectors out.

    python -m memvec.predict data.path=memories.jsonl output_dir=runs/a
    python -m memvec.predict data.path=memories.jsonl dry_run=true         # only what it would be: memvec.run.dry_run

    read + validate -> tokenise -> length-grouped batches -> predict_step -> journal -> Parquet in input order

In: a composed configuration (conf/predict.yaml). Out: a finished run folder, and its summary; with `publish=` also a
copy of it where others read it.

The parts are connected here; `memvec.run.stage` runs them. They are imported where they are connected: that takes
seconds, for which `--help` and a misspelt override should not wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from memvec.cli import main
from memvec.config.values import one_of
from memvec.errors import ConfigError
from memvec.quiet import ignore_lightning_warnings

if TYPE_CHECKING:
    from memvec.run.dry_run import DryRun
    from memvec.run.stage import Stage
    from memvec.run.summary import RunSummary


def predict(cfg: DictConfig, *, data: Any = None) -> RunSummary:
    """Runs the whole flow, or resumes it where an earlier attempt stopped.

    Args:
        cfg: The configuration, as `memvec.compose` returns it, with `output_dir` set.
        data: The memory texts, where the program has them: a `datasets.Dataset`, a pyarrow Table, a pandas or polars
            DataFrame, a list of texts or a list of dictionaries; None reads `data.path`. The same rows resume the run.

    Returns:
        The finished run's summary.

    Raises:
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    from memvec.run.build import without_path
    from memvec.run.publish import open_place, publish_run
    from memvec.run.stage import run_stage

    if cfg.dry_run:
        raise ConfigError("dry_run", True, found="a plan is asked for, which memvec.run.dry_run.plan_run(cfg) makes")
    stage = vector_stage(cfg) if data is None else vector_stage(without_path(cfg), data=data)
    publishes = cfg.publish is not None and stage.computation.leads
    place = open_place(cfg.publish, stage.folder) if publishes else None
    summary = run_stage(stage)
    if place is not None:
        publish_run(stage.folder, place)
    return summary


def vector_stage(cfg: DictConfig, *, data: Any = None) -> Stage[RunSummary]:
    """Returns the parts of the flow, connected: texts -> data module -> module -> writer -> results."""
    from memvec.run.build import build_datamodule, build_model, build_writer, run_folder
    from memvec.run.computation import TrainerComputation
    from memvec.run.stage import Stage
    from memvec.run.summary import RunSummary
    from memvec.trainer.build import build_trainer
    from memvec.trainer.metrics import Stopwatch
    from memvec.writer.finalize import Finalizer

    ignore_lightning_warnings()
    stopwatch = Stopwatch()
    folder = run_folder(cfg)
    with stopwatch.stage("build"):
        module = build_model(cfg)
        datamodule = build_datamodule(cfg, module, folder, data=data)
        writer = build_writer(cfg, folder)
        trainer = build_trainer(cfg, writer, folder)
    return Stage(
        cfg=cfg,
        folder=folder,
        rows=datamodule,
        computation=TrainerComputation(trainer, module, datamodule),
        writer=writer,
        results=lambda: Finalizer(folder, layer=module.layer, keep_text=writer.keep_text),
        summary=RunSummary,
        stopwatch=stopwatch,
        reuse=cfg.reuse,
    )


def predict_or_plan(cfg: DictConfig) -> RunSummary | DryRun:
    """Does what the command line asks for."""
    if not one_of("dry_run", cfg.dry_run, (True, False)):
        return predict(cfg)
    from memvec.run.dry_run import plan_run

    return plan_run(cfg)


if __name__ == "__main__":
    main(predict_or_plan, config_name="predict", parts="memvec.run.build")
