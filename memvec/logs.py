"""Where the ranks of a run say what happens: rank 0 on the terminal, every rank in a file of its own."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RankLog(pl.Callback):
    """Writes memvec's log of this rank to `logs/rank-<rank>.log` as long as the Trainer works.

    Args:
        folder: Where the files go. It is made in `setup`, when rank 0 has claimed the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handler: logging.Handler | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Opens the file, and keeps other ranks than the first off the terminal."""
        self.folder.mkdir(exist_ok=True)
        self._handler = logging.FileHandler(self.folder / f"rank-{trainer.global_rank:05d}.log", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter(FORMAT))
        logger = logging.getLogger("memvec")
        logger.addHandler(self._handler)
        logger.propagate = trainer.is_global_zero

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the file."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes down, in the file alone, what ended this rank; `teardown` is not called then."""
        logger = logging.getLogger("memvec")
        logger.propagate = False
        logger.error("ended by %s: %s", type(exception).__name__, exception)
        self._close()

    def _close(self) -> None:
        logger = logging.getLogger("memvec")
        logger.propagate = True
        if self._handler is not None:
            logger.removeHandler(self._handler)
            self._handler.close()
            self._handler = None
