"""The parts of a run of vectors, built from the configuration.

In: a composed configuration. Out: the objects that `memvec.predict` connects; what only a running program knows (the
tokenizer, the run's folder) is added here.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from memvec.config.compose import to_container
from memvec.config.instantiate import build_group, one_line_errors
from memvec.config.values import folder_here
from memvec.data.datamodule import PromptDataModule
from memvec.data.memories import MemoryTexts
from memvec.data.rows import InputRows
from memvec.errors import ConfigError
from memvec.model.backbone import refuse_same_layers
from memvec.model.limits import prompt_limit, vocabulary_size
from memvec.model.module import HiddenStateModule
from memvec.run.folder import RunFolder
from memvec.writer.prediction_writer import VectorWriter
from memvec.writer.vectors import has_vectors


def run_folder(cfg: DictConfig) -> RunFolder:
    """Returns the run's folder.

    Raises:
        ConfigError: `output_dir` is not set; the command line sets it, a program has to. Or it is an address.
    """
    if not cfg.output_dir:
        raise ConfigError("output_dir", found="not set", advice="name the folder the results go to")
    return RunFolder(str(folder_here("output_dir", cfg.output_dir)))


def build_model(cfg: DictConfig) -> HiddenStateModule:
    """Returns the module; its weights are not loaded yet.

    Raises:
        ConfigError: The model has no such layer, or the list of them names one twice.
    """
    module: HiddenStateModule = build_group("model", cfg.model)
    refuse_same_layers(module.checkpoint.config, module.layers)
    return module


def without_path(cfg: DictConfig) -> DictConfig:
    """Returns the configuration of a run whose rows a program gives: one that names no file.

    Raises:
        ConfigError: It names one.
    """
    if cfg.data.path is not None and not OmegaConf.is_interpolation(cfg.data, "path"):  # as the default is
        raise ConfigError("data.path", cfg.data.path, found="the rows are given as data", allowed="one of the two")
    return cast(DictConfig, OmegaConf.merge(cfg, {"data": {"path": None}}))


def build_datamodule(
    cfg: DictConfig, module: HiddenStateModule, folder: RunFolder, *, data: Any = None
) -> PromptDataModule:
    """Returns the data module of memory texts, for a model's tokenizer and limit.

    Args:
        cfg: The whole configuration.
        module: The model.
        folder: The run's folder.
        data: The rows, where a program gives them; None reads `data.path`.
    """
    rows, options = build_rows(cfg.data, folder, given=data)
    texts: MemoryTexts = build_group(
        "data",
        options,
        rows=rows,
        prompt=build_group("prompt", cfg.prompt),
        tokenizer=module.checkpoint.load_tokenizer(),
        model_limit=prompt_limit(module.checkpoint.config),
        vocabulary=vocabulary_size(module.checkpoint.config),
    )
    return PromptDataModule(texts, folder=folder, is_done=partial(has_vectors, folder))


def build_rows(data: DictConfig, folder: RunFolder, *, given: Any = None) -> tuple[InputRows, DictConfig]:
    """Returns the rows that a `data` group names, and its options that are not about rows.

    Args:
        data: The group.
        folder: The run's folder.
        given: The rows, where a program gives them; None reads what the group names.
    """
    options = to_container(data)
    about_rows = {name: options.pop(name) for name in signature(InputRows).parameters if name in options}
    with one_line_errors("data"):
        rows = InputRows(**about_rows, given=given, is_resumed=folder.holds_run)
    return rows, OmegaConf.create(options)


def build_writer(cfg: DictConfig, folder: RunFolder) -> VectorWriter:
    """Returns the prediction writer."""
    writer: VectorWriter = build_group("writer", cfg.writer, journal=folder.journal)
    return writer
