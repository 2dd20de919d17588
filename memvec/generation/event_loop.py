"""An event loop in a thread of its own, that another thread may cancel.

In: a coroutine. Out: what it raises, unless it was cancelled.

Why a thread: in a notebook a loop runs in the first one; and a signal is handled there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class CancellableLoop:
    """Runs one coroutine."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs it in a new thread, and returns when it has ended or was cancelled."""
        with ThreadPoolExecutor(1, "memvec-loop") as pool:
            pool.submit(asyncio.run, self._main(coroutine)).result()

    def cancel(self) -> None:
        """Cancels it, from any thread and at any time."""
        self._is_cancelled = True
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def _main(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._task, self._loop = asyncio.ensure_future(coroutine), asyncio.get_running_loop()
        if self._is_cancelled:
            self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise
