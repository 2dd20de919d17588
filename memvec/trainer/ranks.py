"""The processes of a run, seen from one of them, after Lightning has returned."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch.distributed
from torch.multiprocessing.spawn import ProcessException

from memvec.errors import Interrupted, RankError, ServerError, one_line
from memvec.layout import RunLayout
from memvec.trainer.lightning_internals import started_processes

SECONDS_TO_END = 60
# How the process group and the DataLoader say that another process is gone; both raise a plain RuntimeError.
LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "DataLoader worker")


def process_rank() -> tuple[int, int]:
    """Returns (rank, world_size) of the processes that run this code.

    After `ddp_spawn` only the parent does, so that is (0, 1) there.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextmanager
def rank_errors(folder: RunLayout) -> Iterator[None]:
    """Names another process's end in one line, and says after an interruption what is kept and how to resume.

    Args:
        folder: The folder that the user has named.
    """
    try:
        yield
    except (Interrupted, ServerError) as error:
        error.advise(_go_on(folder))
        raise
    except ProcessException as error:  # a spawned rank's; its own error stands in the last line of a traceback in words
        said = re.sub(r"^memvec\.errors\.\w+: ", "", str(error).strip().rpartition("\n")[2])
        raise RankError(f"rank {error.error_index} ended", found=said, advice=_go_on(folder)) from error
    except (ConnectionResetError, BrokenPipeError, EOFError) as error:  # of the pipe to a DataLoader's worker
        raise RankError("a process of this run ended", found=one_line(error), advice=_go_on(folder)) from error
    except RuntimeError as error:  # torch.distributed's and the DataLoader's errors are RuntimeErrors
        if not any(message in str(error) for message in LOST_PROCESS):
            raise
        said = one_line(error).partition(" This is typically caused")[0]  # gloo's advice to look for bugs
        raise RankError("a process of this run ended", found=said, advice=_go_on(folder)) from error


def _go_on(folder: RunLayout) -> str:
    return f"what was computed is kept: the same command with output_dir={folder.root} resumes the run"


def wait_for_started_ranks(trainer: pl.Trainer) -> None:
    """Waits for the processes that Lightning's launcher started by a command, which otherwise outlive this one.

    Raises:
        RankError: One of them did not end well.
    """
    for local_rank, process in enumerate(started_processes(trainer), start=1):
        try:
            code = process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise RankError(f"rank {local_rank}", found=f"did not end in {SECONDS_TO_END} s and was killed") from error
        if code != 0:
            advice = "see its log in the run's folder"
            raise RankError(f"rank {local_rank}", found=f"ended with exit code {code}", advice=advice)
