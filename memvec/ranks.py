"""The processes of a run, seen from one of them, after Lightning has returned."""

from __future__ import annotations

import subprocess

import lightning.pytorch as pl
import torch.distributed

from memvec.errors import WriterError

SECONDS_TO_END = 60


def process_rank() -> tuple[int, int]:
    """Returns (rank, world_size) of the processes that run this code.

    After `ddp_spawn` only the parent does, so that is (0, 1) there.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def wait_for_started_ranks(trainer: pl.Trainer) -> None:
    """Waits for the processes that Lightning's launcher started, which otherwise outlive this one.

    Raises:
        WriterError: One of them did not end well.
    """
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for local_rank, process in enumerate(processes, start=1):
        try:
            code = process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise WriterError(f"rank {local_rank} did not end within {SECONDS_TO_END} s and was killed") from error
        if code != 0:
            raise WriterError(f"rank {local_rank} ended with exit code {code}; see its log in the run's folder")
