"""This process: the rank it was started as, its imports and its memory, and what a signal does to it.

In: the environment; a signal. Out: a rank; `Interrupted`, raised when what was running has come to an end.

Why on the ground floor: the command line needs both before it imports the parts of a run, which takes seconds.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from memvec.errors import Interrupted

# Where torchrun, Lightning and SLURM say it, in the order in which Lightning looks (fabric/utilities/rank_zero.py).
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
HOW_TO_STOP = "finishing the batch in hand; a second signal stops at once"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# glibc's malloc.h, and the names of the same in the environment (mallopt(3)). More than 32 MiB some versions refuse.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20), "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1)}


def started_rank() -> int:
    """Returns the rank this process was started as, whether or not a process group exists.

    Of what Lightning's launcher starts on another machine than the first, it is 0 for none, and need not be the rank.
    """
    rank = next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)
    return rank or (int(os.environ.get("NODE_RANK", 0)) if "LOCAL_RANK" in os.environ else 0)


def import_parts(module: str) -> None:
    """Imports a module, with libraries that take seconds, into a process that is memvec's own.

    They make half a million objects, which stay. The garbage collector would look through them after every fourth more,
    and as the process ends, for longer than `import torch` takes; so it never does.
    """
    gc.disable()
    import_module(module)
    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)  # what has been made since


def keep_freed_memory() -> None:
    """Has glibc keep memory that is freed, in this process and in those that it starts.

    A layer's activations are megabytes that are allocated and freed in turn. glibc gives each back to the kernel, which
    maps and clears every page anew: a tenth of a batch's processor time (tests/benchmarks/README.md). The most memory
    that a process ever holds is the same. What the environment says already stays.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    for name in MALLOC.keys() - os.environ.keys():
        option, value = MALLOC[name]
        os.environ[name] = str(value)
        mallopt(option, value)


def end_with_parent() -> None:
    """Asks the kernel to send this process SIGTERM when its parent dies (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def stop_on_signal(
    stop: Callable[[int], None], *, kill: Callable[[], None] = lambda: None, said: str = HOW_TO_STOP
) -> Iterator[None]:
    """Has a signal stop what runs inside; a second one ends everything at once.

    Args:
        stop: Called with the first signal's number, in its handler.
        kill: Called at the second, before this process ends.
        said: What the terminal is told at the first; nothing where it is empty.

    Raises:
        Interrupted: There was a signal.
    """
    if not is_main_thread():
        yield
        return
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if received:
            kill()
            os._exit(128 + number)
        received.append(number)
        if said:
            say(said)
        stop(number)

    before: dict[int, Any] = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    except Exception as error:  # spawned ranks say that they were interrupted, with a traceback in words
        if received:
            raise Interrupted(received[0]) from error
        raise
    finally:
        restore(before)
    if received:
        raise Interrupted(received[0])


def is_main_thread() -> bool:
    """Whether this is the thread in which Python lets signals be handled."""
    return threading.current_thread() is threading.main_thread()


def say(line: str) -> None:
    """Tells the terminal, from a signal's handler."""
    os.write(2, f"\nmemvec: {line}\n".encode())


def restore(handlers: Mapping[int, Any]) -> None:
    """Puts handlers of signals back."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
