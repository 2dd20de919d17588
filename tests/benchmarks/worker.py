"""Runs a function in a process of its own, which stays for the next call.

In: a function that builds something once and returns a function, and the calls. Out: each call's result.

Why a process for each contestant: its peak memory is its own, and no contestant can change another's global settings
(matrix-product routes, thread pools, allocators). Why it stays: loading and warming up are paid once, and the calls of
all contestants can be interleaved. A worker that waits uses no processor time.
"""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Build = Callable[..., Callable[..., Any]]


class WorkerError(RuntimeError):
    """What happened in a worker; the message ends with its traceback."""


class Worker:
    """A process that calls what `build` returns.

    Args:
        name: For messages.
        build: A function of a module; called in the process at the first call, so that only one builds at a time.
        arguments: For `build`.
    """

    def __init__(self, name: str, build: Build, *arguments: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a fork would inherit this process's memory and threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), name=name)
        self._process.start()
        theirs.close()  # so that the death of the process is an end of file here

    def wait(self) -> None:
        """Waits until the process has imported what it needs."""
        self._receive()

    def call(self, *arguments: Any) -> Any:
        """Returns the function's result.

        Raises:
            WorkerError: It raised an error, or its process died.
        """
        self._connection.send(arguments)
        return self._receive()

    def close(self) -> None:
        """Ends the process; may be called again."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        try:
            result, error = self._connection.recv()
        except EOFError:
            self._process.join()
            raise WorkerError(f"{self.name}: its process died (exit code {self._process.exitcode})") from None
        if error is not None:
            raise WorkerError(f"{self.name}: {error}")
        return result


def call_once(name: str, build: Build, arguments: tuple[Any, ...] = (), call: tuple[Any, ...] = ()) -> Any:
    """Returns the result of one call in a process that ends with it."""
    worker = Worker(name, build, *arguments)
    try:
        worker.wait()
        return worker.call(*call)
    finally:
        worker.close()


def _serve(connection: Connection, build: Build, arguments: tuple[Any, ...]) -> None:
    logging.basicConfig(level=logging.ERROR)
    connection.send((None, None))
    function = None
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        try:
            function = function or build(*arguments)
            connection.send((function(*call), None))
        except Exception:  # whatever it is, the other contestants go on
            connection.send((None, traceback.format_exc()))
