"""A computation that may take only so long and so much memory: a chat template is a program, and a stranger wrote it.

In: a function that returns a text. Out: the text, or why there is none.

How: a forked child computes it, since nothing within a process stops a power of large integers or gives back what a
template allocates; the kernel limits the child's processor time and memory, and the parent waits only so long. Why a
fork and no new process: the child has everything imported already, which takes a second or two, and it runs nothing but
the template.
"""

from __future__ import annotations

import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from memvec.errors import one_line

# What a template takes is milliseconds and kilobytes.
PROCESSOR_SECONDS = 5
BYTES = 2**30
CHARACTERS = 2**24
# Of a machine so busy that the child does not get its seconds.
MOST_SECONDS = 120.0
TEXT, REASON = b"+", b"-"
# Set while the process forks: else the tokenizers library warns, of a use that the child does not make of it.
PARALLELISM = "TOKENIZERS_PARALLELISM"


class NotComputed(Exception):  # noqa: N818 - says what happened, and is never shown as it is
    """There is no text; the message says why."""


def within_limits(compute: Callable[[], str]) -> str:
    """Returns what `compute` returns.

    Args:
        compute: Runs in a child process, so that nothing it changes is seen here.

    Raises:
        NotComputed: It raises, takes too long, or its text or memory is too large.
    """
    answer = _answer(compute) if not hasattr(os, "fork") else _answer_of_child(compute)  # Windows cannot fork
    if not answer:
        raise NotComputed(f"it takes more than {PROCESSOR_SECONDS} seconds")
    content = answer[1:].decode("utf-8", "surrogatepass")
    if answer[:1] == REASON:
        raise NotComputed(content)
    return content


def _answer_of_child(compute: Callable[[], str]) -> bytes:
    """Returns what `_answer` returns in a child process; nothing where the child does not get that far."""
    reading, writing = os.pipe()
    child = _fork()
    if child == 0:
        try:
            os.close(reading)
            _limit()
            with os.fdopen(writing, "wb") as stream:
                stream.write(_answer(compute))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return _read(reading)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # where the program ignores its children's ends
            os.waitpid(child, 0)


def _fork() -> int:
    before = os.environ.get(PARALLELISM)
    os.environ.setdefault(PARALLELISM, "false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child starts and uses none
            return os.fork()
    finally:
        if before is None:
            del os.environ[PARALLELISM]


def _limit() -> None:
    """Limits this process; only where the system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))


def _answer(compute: Callable[[], str]) -> bytes:
    """Returns the text or the reason, after one byte that says which."""
    try:
        text = compute()
    except BaseException as error:  # whatever a template makes of its input
        return REASON + one_line(error).encode()
    if len(text) > CHARACTERS:
        return REASON + f"it has {len(text):,} characters; allowed: {CHARACTERS:,}".encode()
    return TEXT + text.encode("utf-8", "surrogatepass")


def _read(reading: int) -> bytes:
    """Returns all that comes through a pipe; nothing where its end does not come in time."""
    deadline = time.monotonic() + MOST_SECONDS
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            parts.append(os.read(reading, 2**20))
            if not parts[-1]:
                return b"".join(parts)
    return b""
