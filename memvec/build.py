"""Builds the parts of a run from its configuration.

In: a composed configuration. Out: the objects that `memvec.predict` and `memvec.generate` connect.

Each group of conf/ names a class (`_target_`) and its options; what only a running program knows (the tokenizer, the
run's folder) is added here. Whatever a group cannot be built from is a `ConfigError` of one line.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import PyTorchProfiler
from omegaconf import DictConfig

from memvec.config import one_of
from memvec.data.datamodule import MemoryDataModule
from memvec.data.reader import one_line
from memvec.errors import ConfigError, MemvecError
from memvec.generation.datamodule import ConversationDataModule
from memvec.generation.module import GenerationModule
from memvec.generation.writer import OutputWriter
from memvec.interrupt import StopOnSignal
from memvec.logs import RankLog
from memvec.metrics import RankMetrics
from memvec.model.backbone import prompt_limit
from memvec.model.module import HiddenStateModule
from memvec.progress import TokenProgressBar
from memvec.run import RunFolder
from memvec.writer.prediction_writer import JournalCallback, VectorWriter


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


def build_datamodule(cfg: DictConfig, module: HiddenStateModule, folder: RunFolder) -> MemoryDataModule:
    """Returns the data module for a model's tokenizer and limit."""
    datamodule: MemoryDataModule = _build(
        "data",
        cfg.data,
        prompt=_build("prompt", cfg.prompt),
        tokenizer=module.load_tokenizer(),
        model_limit=prompt_limit(module.load_config()),
        folder=folder,
    )
    return datamodule


def build_writer(cfg: DictConfig, folder: RunFolder) -> VectorWriter:
    """Returns the prediction writer."""
    writer: VectorWriter = _build("writer", cfg.writer, journal=folder.journal)
    return writer


def build_generator(cfg: DictConfig) -> GenerationModule:
    """Returns the module that writes memory texts; its weights are not loaded yet."""
    module: GenerationModule = _build("generation", cfg.generation)
    return module


def build_conversations(cfg: DictConfig, module: GenerationModule, folder: RunFolder) -> ConversationDataModule:
    """Returns the data module for a generating model's prompt, tokenizer and limit."""
    datamodule: ConversationDataModule = _build(
        "data",
        cfg.data,
        prompt=module.prompt,
        tokenizer=module.load_tokenizer(),
        model_limit=prompt_limit(module.load_config()),
        output_tokens=module.max_new_tokens,
        folder=folder,
    )
    return datamodule


def build_output_writer(cfg: DictConfig, folder: RunFolder) -> OutputWriter:
    """Returns the prediction writer of generation."""
    writer: OutputWriter = _build("writer", cfg.writer, journal=folder.journal)
    return writer


def build_trainer(cfg: DictConfig, writer: JournalCallback, folder: RunFolder) -> pl.Trainer:
    """Returns the Trainer with memvec's callbacks."""
    # In this order: the metrics stop their clock when the writer is done, and a signal is heeded after both.
    callbacks: list[pl.Callback] = [
        RankLog(folder.logs),
        writer,
        RankMetrics(folder.journal, writer.counters),
        StopOnSignal(),
    ]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(TokenProgressBar())
    with _without_tips():
        trainer: pl.Trainer = _build(
            "trainer",
            cfg.trainer,
            callbacks=callbacks,
            default_root_dir=str(folder.root),
            profiler=_profiler(folder) if one_of("profile", cfg.profile, (True, False)) else None,
        )
    return trainer


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


def _profiler(folder: RunFolder) -> PyTorchProfiler:
    """Records three batches, once the first have warmed everything up: a table, and a trace for a viewer."""
    schedule = torch.profiler.schedule(wait=2, warmup=1, active=3, repeat=1)
    return PyTorchProfiler(dirpath=folder.profile, filename="operations", row_limit=40, schedule=schedule)


def ignore_known_warnings() -> None:
    """Silences what Lightning warns of where it does not apply to a run that computes vectors."""
    for message in (
        ".*custom batch sampler .* for prediction.*",  # it returns every row, and finalising counts them
        ".*does not have many workers.*",  # batches are built from flat arrays in less time than a worker costs
        ".*Total length of `DataLoader` across ranks is zero.*",  # all was computed before; finalising is left
        ".*isinstance\\(treespec, LeafSpec\\).*is deprecated.*",  # inside Lightning
    ):
        warnings.filterwarnings("ignore", message=message)


def _build(group: str, cfg: DictConfig, **known: Any) -> Any:
    with _one_line_errors(group):
        return instantiate(cfg, _partial_=True, _convert_="all")(**known)


@contextmanager
def _one_line_errors(group: str) -> Iterator[None]:
    try:
        yield
    except MemvecError:
        raise
    except (InstantiationException, MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, MemvecError):
            raise cause from error
        raise ConfigError(f"the {group} group of the configuration cannot be used: {one_line(cause)}") from error
