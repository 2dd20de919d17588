"""Where the ranks of a run say what happens: rank 0 on the terminal, every rank in a file of its own."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from memvec.errors import OneLineFormatter, on_one_line, one_line
from memvec.files import create_file, make_folder, writing
from memvec.quiet import ignore_lightning_warnings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Whose levels a spawned rank takes over from the process that spawned it.
LOGGERS = ("memvec", "lightning.pytorch", "lightning.fabric")

log = logging.getLogger(__name__)


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Writes memvec's log to `logs/rank-00000.log` in a process that is alone and has no Trainer.

    Args:
        folder: Where the file goes; it is made.
    """
    handler, logger = _open_log(folder, 0), logging.getLogger("memvec")
    try:
        yield
    except BaseException as error:
        logger.propagate = False  # the terminal is told elsewhere
        logger.error("ended by %s: %s", type(error).__name__, error)
        logger.propagate = True
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


def _open_log(folder: Path, rank: int) -> logging.Handler:
    make_folder(folder)
    with writing(folder):
        handler = _PrivateFile(folder / f"rank-{rank:05d}.log", encoding="utf-8")
    handler.setFormatter(OneLineFormatter(FORMAT))
    logging.getLogger("memvec").addHandler(handler)
    return handler


class RankLog(pl.Callback):
    """Writes memvec's log of this rank to `logs/rank-<rank>.log` as long as the Trainer works.

    Args:
        folder: Where the files go. It is made in `setup`, when rank 0 has claimed the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handler: logging.Handler | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Opens the file, keeps other ranks than the first off the terminal, and says what the ranks are."""
        self._handler = _open_log(self.folder, trainer.global_rank)
        logger = logging.getLogger("memvec")
        logger.propagate = trainer.is_global_zero
        if trainer.world_size > 1:
            device, threads = trainer.strategy.root_device, torch.get_num_threads()
            log.info("rank %d of %d: %s, CPU threads: %d", trainer.global_rank, trainer.world_size, device, threads)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the file."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes down, in the file alone, what ended this rank; `teardown` is not called then."""
        if self._handler is None:  # the process that spawned the ranks
            return
        logger = logging.getLogger("memvec")
        logger.propagate = False
        logger.error("ended by %s: %s", type(exception).__name__, exception)
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """A spawned rank is told how this process logs: it would begin with Python's own settings."""
        levels = {name: logging.getLogger(name).level for name in LOGGERS}
        return {**self.__dict__, "_levels": levels, "_is_shown": bool(logging.getLogger().handlers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lets a spawned rank log as the process does that spawned it."""
        levels, is_shown = state.pop("_levels"), state.pop("_is_shown")
        self.__dict__.update(state)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if is_shown:
            handler = logging.StreamHandler(sys.stdout)
            handler.setFormatter(OneLineFormatter("%(message)s"))
            logging.basicConfig(handlers=[handler])  # nothing where there are handlers already
        ignore_lightning_warnings()

    def _close(self) -> None:
        logger = logging.getLogger("memvec")
        logger.propagate = True
        if self._handler is not None:
            logger.removeHandler(self._handler)
            self._handler.close()
            self._handler = None


class _PrivateFile(logging.FileHandler):
    """Appends to a file that memvec makes as it makes all others."""

    def _open(self) -> io.TextIOWrapper:
        return os.fdopen(create_file(Path(self.baseFilename), os.O_APPEND), "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as logging calls it
        """Says once that the log ends here; a disk that is full ends the run where it writes results."""
        reason = one_line(sys.exc_info()[1] or OSError())
        line = f"memvec: {self.baseFilename}: cannot be written: {reason}; this log ends here"
        sys.stderr.write(f"{on_one_line(line)}\n")
        self.setLevel(logging.CRITICAL + 1)

    def close(self) -> None:
        """Closes the file; what could not be written has been said."""
        with suppress(OSError):
            super().close()
