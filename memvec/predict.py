"""Hydra entry: memory texts in, vectors out.

    python -m memvec.predict data.path=memories.jsonl output_dir=runs/a
    python -m memvec.predict data.path=memories.jsonl dry_run=true         # only what it would be: memvec.dry_run

    read + validate -> tokenise -> length-grouped batches -> predict_step -> journal -> Parquet in input order

In: a composed configuration (conf/predict.yaml). Out: a finished run folder, and its summary.

The process that leads (rank 0) claims the folder and prepares the data before any other process is started, so that
what is wrong with the input, the model or the folder is said once. Lightning's strategy then runs the rest on every
rank.
"""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from memvec.build import (
    build_datamodule,
    build_model,
    build_trainer,
    build_writer,
    run_folder,
)
from memvec.cli import main
from memvec.config import one_of, to_container
from memvec.dry_run import DryRun, plan_run
from memvec.errors import ConfigError
from memvec.history import forget_histories, write_history
from memvec.interrupt import signals_to_spawned_ranks
from memvec.logs import ignore_known_warnings
from memvec.metrics import Stopwatch, combine_ranks, first_notes, forget_ranks, stage_table
from memvec.ranks import process_rank, rank_errors, wait_for_started_ranks
from memvec.run import RunState
from memvec.summary import RunSummary, read_summary, write_summary
from memvec.writer.finalize import Finalizer

log = logging.getLogger("memvec.predict")  # run as a program, the module's own name is __main__


def predict(cfg: DictConfig) -> RunSummary:
    """Runs the whole flow, or goes on with it where an earlier attempt stopped.

    Args:
        cfg: The configuration, as `memvec.compose` returns it, with `output_dir` set.

    Returns:
        The finished run's summary.

    Raises:
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    if cfg.dry_run:
        raise ConfigError("dry_run=true: a plan is asked for, which memvec.dry_run.plan_run(cfg) makes")
    ignore_known_warnings()
    stopwatch = Stopwatch()
    folder = run_folder(cfg)
    with stopwatch.stage("build"):
        module = build_model(cfg)
        datamodule = build_datamodule(cfg, module, folder)
        writer = build_writer(cfg, folder)
        trainer = build_trainer(cfg, writer, folder)

    try:
        if trainer.is_global_zero:
            fingerprint = {**datamodule.fingerprint(), **module.fingerprint(precision=str(trainer.precision))}
            state = folder.claim(fingerprint, resume=cfg.resume)
            if state is RunState.FINISHED:
                log.info("the run in %s is complete already; nothing to do", folder.root)
                folder.release(remove_journal=True)  # killed between the manifest and the end
                return read_summary(folder)
            forget_ranks(folder.journal)  # an attempt that was killed may have left its numbers
            forget_histories(folder.journal)
            with stopwatch.stage("prepare"):
                datamodule.prepare_data()
            if state is RunState.UNFINISHED:
                log.info("going on in %s: %d vectors are left to compute", folder.root, datamodule.count_remaining())
        elif folder.is_finished:
            return read_summary(folder)

        with stopwatch.stage("load and predict"), rank_errors(folder), signals_to_spawned_ranks(trainer):
            trainer.predict(module, datamodule=datamodule, return_predictions=False)
            trainer.strategy.barrier("every rank's journal is complete")

        rank, world_size = process_rank()
        with stopwatch.stage("finalize"), rank_errors(folder):
            finalizer = Finalizer(folder, keep_text=writer.keep_text)
            finalizer.write_vectors(rank=rank, world_size=world_size)
            trainer.strategy.barrier("every rank's share of the vectors is written")
        if rank > 0:
            return RunSummary(folder, {}, {})
        wait_for_started_ranks(trainer)
        finalizer.write_rejected()
        write_history(folder.journal, folder.history)
        summary = write_summary(
            folder,
            counts=finalizer.counts,
            config=to_container(cfg),
            metrics={**combine_ranks(folder.journal), "seconds": stopwatch.seconds},
            notes=first_notes(folder.journal) or module.notes(),
        )
        if cfg.profile:
            (folder.profile / "stages.txt").write_text(stage_table(stopwatch.seconds), encoding="utf-8")
            log.info("where the time went: %s", folder.profile)
        folder.release(remove_journal=True)
        return summary
    finally:
        folder.release()


def predict_or_plan(cfg: DictConfig) -> RunSummary | DryRun:
    """Does what the command line asks for."""
    return plan_run(cfg) if one_of("dry_run", cfg.dry_run, (True, False)) else predict(cfg)


if __name__ == "__main__":
    main(predict_or_plan, config_name="predict")
