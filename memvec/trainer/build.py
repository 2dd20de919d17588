"""Lightning's Trainer, built from the configuration with memvec's callbacks.

In: `trainer.*` of the configuration, a prediction writer, the run's folder. Out: the Trainer, or one line that says why
there is none: devices that are not there, processes that do not fit what torchrun or SLURM has started.
"""

from __future__ import annotations

import os

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from memvec.config.instantiate import build_group, one_line_errors
from memvec.config.values import PRECISIONS, one_of
from memvec.errors import ConfigError
from memvec.layout import RunLayout
from memvec.quiet import without_lightning_tips
from memvec.trainer.history import RankHistory
from memvec.trainer.interrupt import StopOnSignal
from memvec.trainer.logs import RankLog
from memvec.trainer.metrics import RankMetrics
from memvec.trainer.profile import BatchProfile
from memvec.trainer.progress import TokenProgressBar
from memvec.writer.prediction_writer import JournalCallback

BATCHES_IN_PROFILE = 3


def build_trainer(
    cfg: DictConfig, writer: JournalCallback, folder: RunLayout, *, batches_in_profile: int = BATCHES_IN_PROFILE
) -> pl.Trainer:
    """Returns the Trainer with memvec's callbacks.

    Args:
        cfg: The whole configuration.
        writer: The prediction writer.
        folder: The run's folder.
        batches_in_profile: How many batches a profile records.
    """
    _grow_allocations_in_place()
    if str(cfg.trainer.strategy).startswith(("fsdp", "deepspeed")):
        found = "memvec shards weights over devices with trainer=fsdp or trainer=tensor_parallel"
        raise ConfigError("trainer.strategy", cfg.trainer.strategy, found=found)
    one_of("trainer.precision", cfg.trainer.precision, tuple(PRECISIONS))
    # In this order: the metrics stop their clock when the writer is done, and a signal is heeded after both.
    numbers = [RankMetrics(folder.journal, writer.counters), RankHistory(folder.journal)]
    callbacks: list[pl.Callback] = [RankLog(folder.logs), writer, *numbers, StopOnSignal()]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(TokenProgressBar())
    if one_of("profile", cfg.profile, (True, False)):
        callbacks.append(BatchProfile(folder.profile, batches=batches_in_profile))
    with without_lightning_tips(), one_line_errors("trainer"):
        environment = cluster_environment()
        trainer: pl.Trainer = build_group(
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
        started = f"torchrun or SLURM has started {environment.world_size()} processes"
        found = f"{started}, but with trainer.num_nodes={cfg.trainer.num_nodes} this means {wanted}"
        advice = "name the devices of one machine, and the number of machines"
        raise ConfigError("trainer.devices", cfg.trainer.devices, found=found, advice=advice)
    if not shards_weights(cfg):
        return
    strategy = cfg.trainer.strategy
    sizes = (strategy.data_parallel_size, strategy.tensor_parallel_size)
    if "auto" not in sizes and sizes[0] * sizes[1] != wanted:
        product = f"data_parallel_size={sizes[0]} times tensor_parallel_size={sizes[1]}"
        raise ConfigError("trainer.strategy", found=f"{product} must be the number of processes, {wanted}")


def shards_weights(cfg: DictConfig) -> bool:
    """Whether processes are to hold one copy of the weights together: Lightning's `ModelParallelStrategy`."""
    return OmegaConf.is_dict(cfg.trainer.strategy) and "tensor_parallel_size" in cfg.trainer.strategy


def build_lone_trainer(cfg: DictConfig, folder: RunLayout, *, callback: pl.Callback) -> pl.Trainer:
    """Returns a Trainer for one batch on one device of this machine, whatever the run is to have."""
    known = {"devices": 1, "num_nodes": 1, "strategy": "auto", "limit_predict_batches": 1, "enable_progress_bar": False}
    with without_lightning_tips():
        trainer: pl.Trainer = build_group(
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


def cluster_environment() -> ClusterEnvironment | None:
    """Returns what torchrun or SLURM says of the processes it has started, or None where Lightning starts them itself.

    SLURM's never requeues by itself, as Lightning's own would: that leaves a checkpoint in the run's folder and loads
    it into whatever model runs there next, and a run of memvec resumes without one.
    """
    if TorchElasticEnvironment.detect():  # first, since torchrun can be used inside SLURM
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
