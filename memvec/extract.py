"""Hydra entry: conversations in, memory texts and their vectors out.

    python -m memvec.extract data.path=conversations.jsonl output_dir=runs/a

    conversations ─ memvec.generate ─> memory texts ─ memvec.predict ─> vectors

In: a composed configuration (conf/extract.yaml). Out: a run folder as `memvec.predict` leaves it, so `memvec.load`
reads it, and within it `memories/`, as `memvec.generate` leaves it. Killed in either stage, the same command resumes
there.

The weights are loaded once where both stages use the same model: the decoder that wrote the texts computes the vectors.
With `generation=server` a server writes the texts, and the model here computes their vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from memvec.cli import main
from memvec.config.compose import to_container
from memvec.errors import ConfigError, InputError, options_named
from memvec.generate import memory_stage
from memvec.layout import MEMORIES
from memvec.predict import vector_stage
from memvec.schema import PROVENANCE

if TYPE_CHECKING:
    from memvec.generation.module import GenerationModule
    from memvec.generation.summary import GenerationSummary
    from memvec.model.module import HiddenStateModule
    from memvec.run.summary import RunSummary

SHARED_BY_BOTH = ("model", "trainer", "resume", "profile")


@dataclass(frozen=True)
class ExtractSummary:
    """What both stages came to.

    Args:
        memories: Of the first.
        vectors: Of the second.
    """

    memories: GenerationSummary
    vectors: RunSummary

    def lines(self) -> list[str]:
        """Returns the closing summary."""
        return [*self.memories.lines(), *self.vectors.lines()]


def extract(cfg: DictConfig) -> ExtractSummary:
    """Runs both stages, or resumes the one in which an earlier attempt stopped.

    Args:
        cfg: The configuration, as `memvec.compose(…, config_name="extract")` returns it, with `output_dir` set.

    Returns:
        The summary of both.

    Raises:
        InputError: No memory was found, so there is nothing to compute vectors of.
        MemvecError: Something in the configuration, input, model or folder is wrong; the message says what.
    """
    from memvec.run.build import run_folder
    from memvec.run.computation import TrainerComputation
    from memvec.run.reuse import find_runs
    from memvec.run.stage import run_stage

    _check_second_stage(to_container(cfg.vectors), to_container(cfg.data)["keep_columns"])
    folder = run_folder(cfg)
    folder.check_stage_before()
    if not folder.is_finished:
        find_runs(cfg.reuse, own=folder)  # one that is not there is said before texts are generated
    first = memory_stage(_memories_config(cfg, folder.root / MEMORIES))
    first.named = folder
    if isinstance(first.computation, TrainerComputation):
        first.computation.module.keeps_weights = True
    memories = run_stage(first, is_last=False)
    if memories.counts.memories == 0:
        if not first.computation.leads:
            raise SystemExit(0)  # the first rank says it
        raise InputError(first.folder.root, found=f"no memory was found in {memories.counts.windows} windows")
    with options_named("data.", "vectors."):
        second = vector_stage(_vectors_config(cfg, first.folder.memories))
    before, computation = first.computation, second.computation
    if isinstance(before, TrainerComputation) and isinstance(computation, TrainerComputation):
        computation.follow(before)
        share_weights(before.module, computation.module)
    return ExtractSummary(memories, run_stage(second))


def _check_second_stage(vectors: dict[str, Any], kept_by_first: Any) -> None:
    """Refuses before texts are generated what the second stage would refuse behind them.

    Args:
        vectors: Its options.
        kept_by_first: The columns that memories have besides their own.
    """
    from memvec.data.formats.fields import paths
    from memvec.data.kept import names_to_keep
    from memvec.data.rules import BatchRules
    from memvec.prompt.encoder import text_limit

    with options_named("data.", "vectors."):
        BatchRules(batch_size=vectors["batch_size"], max_tokens=vectors["max_tokens"])
        text_limit(vectors["max_length"], None)
        wanted = names_to_keep(vectors["keep_columns"])
    there = (*PROVENANCE, *names_to_keep(kept_by_first))
    for name in wanted:
        if name not in there and not any(column in there for column, _ in paths(name)):
            raise ConfigError("vectors.keep_columns", name, found="memories have no such column", allowed=there)


def share_weights(generator: GenerationModule, module: HiddenStateModule) -> bool:
    """Gives the decoder that has generated to the module that computes vectors, where it is the same model.

    Returns:
        Whether it is; it is not loaded where the first stage was complete already, or ran in other processes.
    """
    from memvec.model.packing import unpack

    loaded, generator.loaded = generator.loaded, None  # its head is not needed any more
    if loaded is None or generator.checkpoint != module.checkpoint:
        return False
    unpack(loaded)  # the second stage chooses its own matmuls
    language_model: Any = loaded.model
    module.backbone = module.backbone_of(language_model.get_decoder())
    module.backbone.keep_dtypes(loaded.dtype)  # weights that the first stage has widened stay so
    return True


def _memories_config(cfg: DictConfig, output_dir: Path) -> DictConfig:
    """Returns the configuration of the first stage, as conf/generate.yaml has it."""
    own = {"data": cfg.data, "generation": cfg.generation, "writer": cfg.outputs, "output_dir": str(output_dir)}
    return OmegaConf.create({**own, **{name: cfg[name] for name in SHARED_BY_BOTH}})


def _vectors_config(cfg: DictConfig, memories: Path) -> DictConfig:
    """Returns the configuration of the second stage, as conf/predict.yaml has it."""
    kept = [*cfg.data.keep_columns, *(name for name in cfg.vectors.keep_columns if name not in cfg.data.keep_columns)]
    data = OmegaConf.merge(cfg.vectors, {"path": str(memories), "keep_columns": kept})
    own = {"data": data, **{name: cfg[name] for name in ("prompt", "writer", "output_dir", "reuse")}}
    return OmegaConf.create({**own, **{name: cfg[name] for name in SHARED_BY_BOTH}})


if __name__ == "__main__":
    main(extract, config_name="extract", parts="memvec.generation.build")
