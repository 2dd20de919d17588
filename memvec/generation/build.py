"""The parts of generation, built from the configuration: a local model or a server, conversations, the writer."""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig, OmegaConf

from memvec.config.instantiate import build_group
from memvec.data.datamodule import PromptDataModule
from memvec.errors import ConfigError
from memvec.generation.asking import ServerComputation
from memvec.generation.completions import has_completions
from memvec.generation.conversations import Conversations
from memvec.generation.inputs import AskedWindows, PromptWindows
from memvec.generation.module import GenerationModule
from memvec.generation.server import ChatServer
from memvec.generation.writer import CompletionWriter
from memvec.model.limits import prompt_limit, vocabulary_size
from memvec.run.build import build_rows
from memvec.run.folder import RunFolder
from memvec.trainer.build import cluster_environment

# Options of conversations that say how their windows become batches.
OF_BATCHES = ("batch_size", "max_tokens", "num_workers")


def build_generator(cfg: DictConfig) -> GenerationModule | ChatServer:
    """Returns what writes memory texts: a module without its weights yet, or a server that is not asked yet."""
    generator: GenerationModule | ChatServer = build_group("generation", cfg.generation)
    return generator


def build_conversations(cfg: DictConfig, module: GenerationModule, folder: RunFolder) -> PromptDataModule:
    """Returns the data module of conversations, for a generating model's prompt, tokenizer and limit."""
    windows = PromptWindows(
        build_reader(cfg, folder),
        prompt=module.prompt,
        tokenizer=module.checkpoint.load_tokenizer(),
        model_limit=prompt_limit(module.checkpoint.config),
        vocabulary=vocabulary_size(module.checkpoint.config),
        output_tokens=module.max_new_tokens,
        **{name: cfg.data[name] for name in OF_BATCHES if name in cfg.data},
    )
    return PromptDataModule(windows, folder=folder, is_done=partial(has_completions, folder))


def build_asking(
    cfg: DictConfig, server: ChatServer, writer: CompletionWriter, folder: RunFolder
) -> tuple[AskedWindows, ServerComputation]:
    """Returns the windows that a server is asked about, and what asks.

    Raises:
        ConfigError: Several processes would ask the same.
    """
    environment = cluster_environment()
    if environment is not None and environment.world_size() > 1:
        found = f"one process asks, and torchrun or SLURM has started {environment.world_size()}"
        advice = "run memvec.generate alone, and memvec.predict with its memories.parquet on all of them"
        raise ConfigError("generation", "server", found=found, advice=advice)
    windows = AskedWindows(build_reader(cfg, folder), folder=folder, spans=server.spans)
    computation = ServerComputation(
        server,
        windows,
        flush_every=writer.flush_every,
        fsync=writer.fsync,
        shows_progress=bool(cfg.trainer.get("enable_progress_bar", True)),
    )
    return windows, computation


def build_reader(cfg: DictConfig, folder: RunFolder) -> Conversations:
    """Returns what reads conversations, however windows become batches or requests."""
    rows, options = build_rows(cfg.data, folder)
    of_windows = OmegaConf.masked_copy(options, [str(name) for name in options if name not in OF_BATCHES])
    conversations: Conversations = build_group("data", of_windows, rows=rows)
    return conversations


def build_completion_writer(cfg: DictConfig, folder: RunFolder) -> CompletionWriter:
    """Returns the prediction writer of generation."""
    writer: CompletionWriter = build_group("writer", cfg.writer, journal=folder.journal)
    return writer
