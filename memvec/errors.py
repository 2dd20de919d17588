"""The errors a user can meet, in one tree.

Every one of them means "this cannot go on, and here is what to change": its message is one line that names the
file, row, field or folder, what was found and what is allowed. The command line prints that line alone, without
a traceback (`memvec.cli`). Anything else that is raised is a defect of memvec and keeps its traceback.

Why every message goes through `on_one_line`: names, keys and texts in it come from files that strangers wrote, and must
neither steer a terminal nor add a line that looks like one of memvec's. Nor does one show what is secret in an address.
"""

from __future__ import annotations

import json
import logging
import signal
from typing import Any

from memvec.urls import masked_text

SIGNALLED = 128  # a shell's exit code for a process that a signal ended is this and the signal's number


class MemvecError(Exception):
    """Root of the tree; `except memvec.MemvecError` catches whatever memvec raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """Returns the message as one line, whatever the names in it hold."""
        return on_one_line(masked_text(super().__str__()))


class ConfigError(MemvecError):
    """An override or option that does not exist or does not make sense."""

    exit_code = 2


class ExtraError(MemvecError):
    """A package that only some of memvec needs, and that is not installed."""


class InputError(MemvecError):
    """An input file, folder, column or dataset that cannot be read."""


class ModelError(MemvecError):
    """A model or tokenizer that cannot be found, loaded or used."""


class RunFolderError(MemvecError):
    """An output folder that is in use, belongs to something else, or cannot be written."""


class WriterError(MemvecError):
    """Vectors that could not be written, or that must not be."""


class ServerError(MemvecError):
    """A model server that does not answer, or that refuses whatever it is asked."""


class RankError(MemvecError):
    """A process of the run that failed or ended while the others worked."""


class Interrupted(MemvecError):  # noqa: N818 - not an error, though it ends the run like one
    """A signal asked the run to stop; what was computed is kept.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = SIGNALLED + number


class OneLineFormatter(logging.Formatter):
    """Formats every log record as one line that steers no terminal; a traceback behind it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name for it
        """Returns the record's line."""
        return on_one_line(masked_text(super().formatMessage(record)))


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return on_one_line(masked_text(next(iter(str(error).strip().splitlines()), type(error).__name__)))


def on_one_line(text: str) -> str:
    """Returns a text as a terminal can show it in one line: what is not printable (line ends, escape codes) escaped."""
    return text.translate({ord(one): repr(one)[1:-1] for one in set(text) if not one.isprintable()})


def json_on_one_line(content: Any) -> str:
    """Returns JSON that a terminal can show in one line, and that reads back as the same content."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text.translate({ord(one): json.dumps(one)[1:-1] for one in set(text) if not one.isprintable()})
