"""Asks a server about the windows that are left, and writes the answers to the journal.

In: windows on disk, a server. Out: the same journal as a model on this machine leaves.

How: one process, and in it one event loop with `generation.concurrency` requests at a time, each worker taking the next
window. An answer becomes a row of the journal at once, and `flush_every` rows a frame. SIGTERM or Ctrl-C cancels what
is on its way, and what was answered is flushed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from tqdm import tqdm

from memvec.data.prepared import read_signature
from memvec.generation.completions import COMPLETION_SCHEMA
from memvec.generation.event_loop import CancellableLoop
from memvec.generation.inputs import AskedWindows
from memvec.generation.rows import OutputRows
from memvec.generation.server import ChatServer
from memvec.process import started_rank, stop_on_signal
from memvec.schema import TEXT
from memvec.trainer.logs import log_file
from memvec.trainer.metrics import metrics_files, peak_memory_bytes
from memvec.writer.journal import JournalWriter

HOW_TO_STOP = "keeping what was answered; a second signal stops at once"

log = logging.getLogger(__name__)


class ServerComputation:
    """Computes what is left by asking a server.

    Args:
        server: Which.
        windows: Of the run.
        flush_every: Windows in a frame: at most so many answers are lost when the process dies.
        fsync: When frames reach the disk itself; see `memvec.writer.journal.JournalWriter`.
        shows_progress: Whether there is a progress bar.
    """

    def __init__(
        self,
        server: ChatServer,
        windows: AskedWindows,
        *,
        flush_every: int,
        fsync: Literal["flush", "close"],
        shows_progress: bool,
    ) -> None:
        from memvec.generation.client import RequestCounts  # it needs a package that only this needs

        self.server = server
        self.windows = windows
        self.flush_every = flush_every
        self.fsync = fsync
        self.shows_progress = shows_progress
        self.counts = RequestCounts()
        self.left_out: list[str] | None = None  # known once the server has been greeted
        self._seconds = 0.0
        self._asked = 0
        self._output_tokens = 0

    @property
    def leads(self) -> bool:
        """Whether this process asks; the others of a run that has several come when all is answered."""
        return started_rank() == 0

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the answers about given windows."""
        return self.server.fingerprint()

    def barrier(self, name: str) -> None:
        """Waits for nobody."""

    def wait_for_started(self) -> None:
        """Waits for nobody."""

    def notes(self) -> dict[str, Any]:
        """Returns what was found out while asking, for the manifest."""
        return {
            "path": f"{self.server.concurrency} requests at a time",
            "fields_not_taken": self.left_out or [],
            **asdict(self.counts),
        }

    def run(self) -> None:
        """Asks about all windows that are left.

        Raises:
            Interrupted: There was a signal.
            ServerError: The server does not answer any more.
            WriterError: The journal cannot be written.
        """
        folder = self.windows.folder
        rows: NDArray[np.int64] = np.load(folder.remaining_rows)
        start = time.perf_counter()
        loop = CancellableLoop()
        with (
            log_file(folder.logs),
            stop_on_signal(
                lambda number: loop.cancel(), said="keeping what was answered; a second signal stops at once"
            ),
        ):
            loop.run(self._ask_all(rows))
        self._seconds += time.perf_counter() - start
        self._write_metrics()

    async def _ask_all(self, rows: NDArray[np.int64]) -> None:
        from memvec.generation.client import ChatClient

        if len(rows) == 0:
            return
        windows = Dataset.from_file(str(self.windows.folder.entries))
        made = OutputRows(windows, self.server.prompt.instructions, attempt=self.windows.attempt)
        bar = tqdm(
            desc="Asking",
            total=len(rows),
            disable=not self.shows_progress,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} windows [{elapsed}<{remaining}{postfix}]",
        )
        left = iter(rows.tolist())
        with _Frames(self) as frames, bar:
            async with ChatClient(self.server, self.counts, left_out=self.left_out or ()) as client:
                if self.left_out is None:
                    await client.greet()
                self.left_out = client.left_out
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(self.server.concurrency, len(rows))):
                            group.create_task(self._ask(client, left, made, frames, bar))
                except BaseExceptionGroup as failures:
                    raise failures.exceptions[0] from None

    async def _ask(self, client: Any, left: Iterator[int], made: OutputRows, frames: _Frames, bar: Any) -> None:
        """Asks about one window after the other, until none is left."""
        before = self._output_tokens
        for row in left:
            text = made.windows[row][TEXT]
            answer = await client.ask(text, self.server.sampling(row, attempt=self.windows.attempt))
            if isinstance(answer, str):
                log.warning("window %s: %s", made.windows[row]["id"], answer)
                frames.add(made.without_output(row, answer))
            else:
                frames.add(made.of(row, answer.text, num_tokens=answer.completion_tokens, is_cut=answer.is_cut))
                self._output_tokens += answer.completion_tokens
            self._asked += 1
            tokens = self._output_tokens - before
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            bar.update()

    def _write_metrics(self) -> None:
        tokens = self.counts.prompt_tokens
        numbers = {
            "seconds": self._seconds,
            "entries": self._asked,
            "tokens": tokens,
            "computed_tokens": tokens,
            "padded_tokens": tokens,
            "counted": {"output_tokens": self._output_tokens},
            "max_tokens": None,
            "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
            "notes": self.notes(),
        }
        metrics_files(self.windows.folder.journal).write(0, numbers)


class _Frames:
    """Gathers rows of the journal and appends them in frames; on leaving, however that is, what is left.

    Args:
        computation: Says where and how.
    """

    def __init__(self, computation: ServerComputation) -> None:
        self.flush_every = computation.flush_every
        self.folder = computation.windows.folder
        self._waiting: list[dict[str, Any]] = []
        signature = read_signature(self.folder)
        self._journal = JournalWriter(self.folder.journal, rank=0, signature=signature, fsync=computation.fsync)

    def add(self, row: dict[str, Any]) -> None:
        """Takes a row."""
        self._waiting.append(row)
        if len(self._waiting) >= self.flush_every:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        if rows:
            self._journal.append_rows(pa.RecordBatch.from_pylist(rows, schema=COMPLETION_SCHEMA))

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._flush()
        finally:
            self._journal.close()
