"""Hydra entry: conversations in, memory texts out.

    python -m memvec.generate data.path=conversations.jsonl output_dir=runs/memories

    read + validate -> cut into windows -> tokenise -> length-grouped batches -> generate -> parse -> journal
                                        -> requests to a server ------------------------> parse -> journal
      -> once more what could not be parsed -> memories in order, as Parquet and JSON lines

In: a composed configuration (conf/generate.yaml). Out: a finished run folder, and its summary. `memvec.predict` takes
any of its files as `data.path`; `memvec.extract` does both.

The parts are connected here, where they are imported (`memvec.predict` says why); `memvec.run.stage` runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from memvec.cli import main
from memvec.errors import ConfigError
from memvec.quiet import ignore_lightning_warnings

if TYPE_CHECKING:
    from memvec.generation.summary import GenerationSummary
    from memvec.run.computation import Computation, Rows
    from memvec.run.stage import Stage


def generate(cfg: DictConfig) -> GenerationSummary:
    """Runs the whole flow, or resumes it where an earlier attempt stopped.

    Args:
        cfg: The configuration, as `memvec.compose(…, config_name="generate")` returns it, with `output_dir` set.

    Returns:
        The finished run's summary.

    Raises:
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    from memvec.run.stage import run_stage

    return run_stage(memory_stage(cfg))


def memory_stage(cfg: DictConfig) -> Stage[GenerationSummary]:
    """Returns the parts of the flow, connected: conversations -> windows -> model or server -> writer -> results."""
    from memvec.generation.build import build_asking, build_completion_writer, build_conversations, build_generator
    from memvec.generation.finalize import MemoryFinalizer
    from memvec.generation.server import ChatServer
    from memvec.generation.summary import GenerationSummary
    from memvec.run.build import run_folder
    from memvec.run.computation import TrainerComputation
    from memvec.run.stage import Stage
    from memvec.trainer.build import build_trainer, shards_weights
    from memvec.trainer.metrics import Stopwatch

    ignore_lightning_warnings()
    stopwatch = Stopwatch()
    folder = run_folder(cfg)
    with stopwatch.stage("build"):
        generator = build_generator(cfg)
        writer = build_completion_writer(cfg, folder)
        rows: Rows
        computation: Computation
        if isinstance(generator, ChatServer):
            rows, computation = build_asking(cfg, generator, writer, folder)
        else:
            if shards_weights(cfg):
                raise ConfigError("trainer", found="generation does not shard weights", allowed="default, ddp")
            rows = datamodule = build_conversations(cfg, generator, folder)
            trainer = build_trainer(cfg, writer, folder, batches_in_profile=1)  # one batch is hundreds of steps
            computation = TrainerComputation(trainer, generator, datamodule)
    return Stage(
        cfg=cfg,
        folder=folder,
        rows=rows,
        computation=computation,
        writer=writer,
        results=lambda: MemoryFinalizer(folder, generator.prompt.instructions),
        summary=GenerationSummary,
        stopwatch=stopwatch,
        what="windows",
        attempts=generator.attempts,
        keeps_history=False,
    )


if __name__ == "__main__":
    main(generate, config_name="generate", parts="memvec.generation.build")
