"""Hydra entry: memory texts in, vectors out.

    python -m memvec.predict data.path=memories.jsonl output_dir=runs/a

    read + validate -> tokenise -> length-grouped batches -> predict_step -> journal -> Parquet in input order

In: a composed configuration (conf/predict.yaml). Out: a finished run folder, and its summary.

The parts are connected here; `memvec.stage` runs them.
"""

from __future__ import annotations

from omegaconf import DictConfig

from memvec.build import (
    build_datamodule,
    build_model,
    build_trainer,
    build_writer,
    ignore_known_warnings,
    run_folder,
)
from memvec.cli import main
from memvec.metrics import Stopwatch
from memvec.stage import Stage, run_stage
from memvec.summary import RunSummary
from memvec.writer.finalize import Finalizer


def predict(cfg: DictConfig) -> RunSummary:
    """Runs the whole flow, or goes on with it where an earlier attempt stopped.

    Args:
        cfg: The configuration, as `memvec.compose` returns it, with `output_dir` set.

    Returns:
        The finished run's summary.

    Raises:
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    return run_stage(vector_stage(cfg))


def vector_stage(cfg: DictConfig) -> Stage:
    """Returns the parts of the flow, connected: texts -> data module -> module -> writer -> results."""
    ignore_known_warnings()
    stopwatch = Stopwatch()
    folder = run_folder(cfg)
    with stopwatch.stage("build"):
        module = build_model(cfg)
        datamodule = build_datamodule(cfg, module, folder)
        writer = build_writer(cfg, folder)
        trainer = build_trainer(cfg, writer, folder)
    return Stage(
        cfg=cfg,
        folder=folder,
        module=module,
        datamodule=datamodule,
        trainer=trainer,
        results=lambda: Finalizer(folder, keep_text=writer.keep_text),
        stopwatch=stopwatch,
    )


if __name__ == "__main__":
    main(predict, config_name="predict")
