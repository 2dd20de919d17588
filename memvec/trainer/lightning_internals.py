"""What memvec needs of Lightning that Lightning keeps private, in one place; checked with lightning 2.6.6.

In: a Trainer. Out: who started its processes, those it started itself, and the signal handlers it will put back.
"""

from __future__ import annotations

import signal
import subprocess

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher


def spawns_ranks(trainer: pl.Trainer) -> bool:
    """Whether the ranks are spawned or forked, so that the process that called `predict` computes nothing itself."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def signal_spawned_ranks(trainer: pl.Trainer, number: signal.Signals) -> None:
    """Sends a signal to the ranks that were spawned."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        launcher.kill(number)


def started_processes(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    """Returns the ranks that this process started by a command, in order from local rank 1."""
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def adopt_processes(trainer: pl.Trainer, earlier: pl.Trainer) -> None:
    """Has a Trainer take over the ranks that an earlier one of this program started, instead of starting its own."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher) and isinstance(
        earlier.strategy.launcher, _SubprocessScriptLauncher
    ):
        launcher.procs = started_processes(earlier)


def is_started_by_command(trainer: pl.Trainer) -> bool:
    """Whether Lightning started, or starts, this run's ranks by running their command line again.

    The launcher does not tell: in a rank that it started, it looks as if somebody else had. And a strategy of one
    device knows of no environment, though torchrun may be there.
    """
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, LightningEnvironment) and not spawns_ranks(trainer)


def keep_handler(trainer: pl.Trainer, number: int) -> None:
    """Keeps Lightning from putting back the handler of a signal that it found when it started."""
    trainer._signal_connector._original_handlers.pop(number, None)
