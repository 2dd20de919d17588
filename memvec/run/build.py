"""Builds the parts of a run from its configuration.

In: a composed configuration. Out: the objects that `memvec.predict` and `memvec.generate` connect.

Each group of conf/ names a class (`_target_`) and its options; what only a running program knows (the tokenizer, the
run's folder) is added here. Whatever a group cannot be built from is a `ConfigError` of one line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from memvec.config.values import one_of
from memvec.data.datamodule import PromptDataModule
from memvec.data.memories import MemoryTexts
from memvec.errors import ConfigError, MemvecError, one_line
from memvec.generation.asking import ServerComputation
from memvec.generation.conversations import Conversations
from memvec.generation.inputs import AskedWindows, PromptWindows
from memvec.generation.module import GenerationModule
from memvec.generation.outputs import has_outputs
from memvec.generation.server import ChatServer
from memvec.generation.writer import OutputWriter
from memvec.model.checkpoint import prompt_limit, vocabulary_size
from memvec.model.module import HiddenStateModule
from memvec.run.folder import RunFolder
from memvec.trainer.history import RankHistory
from memvec.trainer.interrupt import StopOnSignal
from memvec.trainer.logs import RankLog
from memvec.trainer.metrics import RankMetrics
from memvec.trainer.profile import BatchProfile
from memvec.trainer.progress import TokenProgressBar
from memvec.writer.prediction_writer import JournalCallback, VectorWriter
from memvec.writer.vectors import has_vectors

BATCHES_IN_PROFILE = 3
# Options of conversations that say how their windows become batches.
OF_BATCHES = ("batch_size", "max_tokens", "num_workers")
# Options whose values the errors of Lightning's Trainer do not name.
NOT_IN_ERRORS = ("accelerator", "devices")


def run_folder(cfg: DictConfig) -> RunFolder:
    """Returns the run's folder.

    Raises:
        ConfigError: `output_dir` is not set; the command line sets it, a program has to.
    """
    if not cfg.output_dir:
        raise ConfigError("output_dir is not set; name the folder the results go to")
    return RunFolder(str(cfg.output_dir))


def build_model(cfg: DictConfig) -> HiddenStateModule:
    """Returns the module; its weights are not loaded yet."""
    module: HiddenStateModule = _build("model", cfg.model)
    return module


def build_datamodule(cfg: DictConfig, module: HiddenStateModule, folder: RunFolder) -> PromptDataModule:
    """Returns the data module of memory texts, for a model's tokenizer and limit."""
    texts: MemoryTexts = _build(
        "data",
        cfg.data,
        prompt=_build("prompt", cfg.prompt),
        tokenizer=module.checkpoint.load_tokenizer(),
        model_limit=prompt_limit(module.checkpoint.config),
        vocabulary=vocabulary_size(module.checkpoint.config),
    )
    return PromptDataModule(texts, folder=folder, is_done=partial(has_vectors, folder))


def build_writer(cfg: DictConfig, folder: RunFolder) -> VectorWriter:
    """Returns the prediction writer."""
    writer: VectorWriter = _build("writer", cfg.writer, journal=folder.journal)
    return writer


def build_generator(cfg: DictConfig) -> GenerationModule | ChatServer:
    """Returns what writes memory texts: a module without its weights yet, or a server that is not asked yet."""
    generator: GenerationModule | ChatServer = _build("generation", cfg.generation)
    return generator


def build_conversations(cfg: DictConfig, module: GenerationModule, folder: RunFolder) -> PromptDataModule:
    """Returns the data module of conversations, for a generating model's prompt, tokenizer and limit."""
    windows = PromptWindows(
        _build_reader(cfg),
        prompt=module.prompt,
        tokenizer=module.checkpoint.load_tokenizer(),
        model_limit=prompt_limit(module.checkpoint.config),
        vocabulary=vocabulary_size(module.checkpoint.config),
        output_tokens=module.max_new_tokens,
        **{name: cfg.data[name] for name in OF_BATCHES if name in cfg.data},
    )
    return PromptDataModule(windows, folder=folder, is_done=partial(has_outputs, folder))


def build_asking(
    cfg: DictConfig, server: ChatServer, writer: OutputWriter, folder: RunFolder
) -> tuple[AskedWindows, ServerComputation]:
    """Returns the windows that a server is asked about, and what asks.

    Raises:
        ConfigError: Several processes would ask the same.
    """
    environment = _cluster_environment()
    if environment is not None and environment.world_size() > 1:
        raise ConfigError(
            f"generation=server: one process asks, and torchrun or SLURM has started {environment.world_size()}; run "
            "memvec.generate alone, and memvec.predict with its memories.parquet on all of them"
        )
    windows = AskedWindows(_build_reader(cfg), folder=folder, spans=server.spans)
    computation = ServerComputation(
        server,
        windows,
        flush_every=writer.flush_every,
        fsync=writer.fsync,
        shows_progress=bool(cfg.trainer.get("enable_progress_bar", True)),
    )
    return windows, computation


def _build_reader(cfg: DictConfig) -> Conversations:
    """Returns what reads conversations, however windows become batches or requests."""
    data = OmegaConf.masked_copy(cfg.data, [name for name in cfg.data if name not in OF_BATCHES])
    conversations: Conversations = _build("data", data)
    return conversations


def build_output_writer(cfg: DictConfig, folder: RunFolder) -> OutputWriter:
    """Returns the prediction writer of generation."""
    writer: OutputWriter = _build("writer", cfg.writer, journal=folder.journal)
    return writer


def build_trainer(cfg: DictConfig, writer: JournalCallback, folder: RunFolder) -> pl.Trainer:
    """Returns the Trainer with memvec's callbacks."""
    _grow_allocations_in_place()
    if str(cfg.trainer.strategy).startswith(("fsdp", "deepspeed")):
        raise ConfigError(
            f"trainer.strategy={cfg.trainer.strategy}: memvec shares weights out over devices with trainer=fsdp or "
            "trainer=tensor_parallel"
        )
    # In this order: the metrics stop their clock when the writer is done, and a signal is heeded after both.
    numbers = [RankMetrics(folder.journal, writer.counters), RankHistory(folder.journal)]
    callbacks: list[pl.Callback] = [RankLog(folder.logs), writer, *numbers, StopOnSignal()]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(TokenProgressBar())
    if one_of("profile", cfg.profile, (True, False)):
        generates = isinstance(writer, OutputWriter)  # one batch of which is hundreds of steps
        callbacks.append(BatchProfile(folder.profile, batches=1 if generates else BATCHES_IN_PROFILE))
    with _without_tips(), _one_line_errors("trainer"):
        environment = _cluster_environment()
        trainer: pl.Trainer = _build(
            "trainer",
            cfg.trainer,
            callbacks=callbacks,
            default_root_dir=str(folder.root),
            **({} if environment is None else {"plugins": environment}),
        )
    _check_processes(cfg, environment, trainer.num_devices * trainer.num_nodes)
    return trainer


def _check_processes(cfg: DictConfig, environment: ClusterEnvironment | None, wanted: int) -> None:
    """Refuses processes that do not fit the configuration, which Lightning would notice later or never."""
    if environment is not None and environment.world_size() != wanted:
        raise ConfigError(
            f"torchrun or SLURM has started {environment.world_size()} processes, but trainer.devices="
            f"{cfg.trainer.devices} trainer.num_nodes={cfg.trainer.num_nodes} means {wanted}; name the devices of one "
            "machine, and the number of machines"
        )
    strategy = cfg.trainer.strategy
    if not OmegaConf.is_dict(strategy) or "tensor_parallel_size" not in strategy:
        return
    sizes = (strategy.data_parallel_size, strategy.tensor_parallel_size)
    if "auto" not in sizes and sizes[0] * sizes[1] != wanted:
        raise ConfigError(
            f"trainer.strategy: data_parallel_size={sizes[0]} times tensor_parallel_size={sizes[1]} must be the number "
            f"of processes, {wanted}"
        )


def build_lone_trainer(cfg: DictConfig, folder: RunFolder, *, callback: pl.Callback) -> pl.Trainer:
    """Returns a Trainer for one batch on one device of this machine, whatever the run is to have."""
    known = {"devices": 1, "num_nodes": 1, "strategy": "auto", "limit_predict_batches": 1, "enable_progress_bar": False}
    with _without_tips():
        trainer: pl.Trainer = _build(
            "trainer", cfg.trainer, callbacks=[callback], default_root_dir=str(folder.root), **known
        )
    return trainer


def _grow_allocations_in_place() -> None:
    """Has a GPU's allocator extend its segments, where the user has not said how; the ranks to be started inherit it.

    Every batch has another shape: fixed segments would fit none of the later ones, and memory would be full of holes.
    torch reads the variable before its first allocation (docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def _cluster_environment() -> ClusterEnvironment | None:
    """Returns what torchrun or SLURM says of the processes it has started, or None where Lightning starts them itself.

    SLURM's never requeues by itself, as Lightning's own would: that leaves a checkpoint in the run's folder and loads
    it into whatever model runs there next, and a run of memvec goes on without one.
    """
    if TorchElasticEnvironment.detect():  # first, since torchrun can be used inside SLURM
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None


@contextmanager
def _without_tips() -> Iterator[None]:
    """Keeps Lightning from telling which accelerators it does not use, and what else could be installed."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _build(group: str, cfg: DictConfig, **known: Any) -> Any:
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{group}.{missing[0]} is not set (--help says what it is)")
    asked = ", ".join(f"{group}.{name}={cfg[name]}" for name in NOT_IN_ERRORS if name in cfg)
    with _one_line_errors(group, asked):
        return instantiate(cfg, _partial_=True, _convert_="all")(**known)


@contextmanager
def _one_line_errors(group: str, asked: str = "") -> Iterator[None]:
    """Turns whatever a group cannot be built from into one line.

    Args:
        group: Its name.
        asked: What was asked for that its errors do not name.
    """
    try:
        yield
    except MemvecError:
        raise
    except (InstantiationException, MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, MemvecError):
            raise cause from error
        named = asked or f"the {group} group of the configuration"
        raise ConfigError(f"{named}: cannot be used: {one_line(cause)}") from error
