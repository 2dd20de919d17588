"""The errors a user can meet, in one tree.

Every one of them means "this cannot go on, and here is what to change": its fields say what it is about (an option, a
row of a file, a folder), what was found, what is allowed and what to do; its message is one line of them. The command
line prints that line alone, without a traceback (`memvec.cli`). Anything else that is raised is a defect of memvec and
keeps its traceback.

Why every message goes through `on_one_line`: names, keys and texts in it come from files that strangers wrote, and must
neither steer a terminal nor add a line that looks like one of memvec's. Nor does one show what is secret in an address.
"""

from __future__ import annotations

import copyreg
import json
import logging
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memvec.urls import masked, masked_text

SIGNALLED = 128  # a shell's exit code for a process that a signal ended is this and the signal's number
UNSET: Any = ...  # where there is no value; pickled and copied, it stays the same object


class MemvecError(Exception):
    """Root of the tree; `except memvec.MemvecError` catches whatever memvec raises on purpose.

    Its message is the line `SUBJECT=VALUE: FOUND; allowed: ALLOWED; ADVICE`, without the parts that are not given. Only
    the line is masked: the fields hold what they are given, and a `value` may be an address with its password.

    Args:
        subject: What it is about: an option, a file or a row of one, a folder, a model.
        value: What the option was set to.
        found: What is wrong.
        allowed: What would be right, in words, or several values.
        advice: What to do.
    """

    exit_code = 1

    def __init__(
        self,
        subject: str | Path = "",
        value: Any = UNSET,
        *,
        found: str = "",
        allowed: str | Iterable[object] = "",
        advice: str = "",
    ) -> None:
        super().__init__()
        self.subject = str(subject)
        self.value = value
        self.found = found
        self.allowed = allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))
        self.advice = advice

    def advise(self, advice: str) -> None:
        """Adds a piece of advice."""
        self.advice = "; ".join(filter(None, (self.advice, advice)))

    def __str__(self) -> str:
        """Returns the message as one line, whatever the names in it hold."""
        subject = self.subject if self.value is UNSET else f"{self.subject}={_shown(self.value)}"
        allowed = self.allowed and f"allowed: {self.allowed}"
        said = "; ".join(filter(None, (self.found, allowed, self.advice)))
        return on_one_line(masked_text(": ".join(filter(None, (subject, said)))))

    def __repr__(self) -> str:
        """Returns the type and the message, and not the fields, which may hold a secret."""
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the fields; an exception's own way is to call its type with what it printed."""
        return copyreg.__newobj__, (type(self),), self.__dict__  # type: ignore[attr-defined]


class ConfigError(MemvecError):
    """An override or option that does not exist or does not make sense; the subject is its name."""

    exit_code = 2


@contextmanager
def options_named(before: str, now: str) -> Iterator[None]:
    """Has errors about options say what they are called here.

    Args:
        before: What the names begin with where the options are checked, such as `data.`.
        now: What they begin with here.
    """
    try:
        yield
    except ConfigError as error:
        if error.subject.startswith(before):
            error.subject = now + error.subject.removeprefix(before)
        raise


class ExtraError(MemvecError):
    """A package that only some of memvec needs, and that is not installed."""


class InputError(MemvecError):
    """An input file, folder, column or dataset that cannot be read; the subject is the file, and its row or line."""


class ModelError(MemvecError):
    """A model or tokenizer that cannot be found, loaded or used; the subject is the model, or a file of it."""


class RunFolderError(MemvecError):
    """An output folder that is in use, belongs to something else, or cannot be written; the subject is its path."""

    @classmethod
    def damaged(cls, path: str | Path, found: str, *, allowed: str = "") -> RunFolderError:
        """Returns the error about a file that is not as memvec writes it."""
        return cls(path, found=f"damaged, or not of memvec: {found}", allowed=allowed)


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
        super().__init__(found=f"stopped by {signal.Signals(number).name}")
        self.exit_code = SIGNALLED + number


class OneLineFormatter(logging.Formatter):
    """Formats every log record as one line that steers no terminal; a traceback behind it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name for it
        """Returns the record's line."""
        return on_one_line(masked_text(super().formatMessage(record)))


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return on_one_line(masked_text(next(iter(str(error).strip().splitlines()), type(error).__name__)))


def _shown(value: object) -> str:
    """Returns an option's value as a line shows it: a text that would run into the line in quotes."""
    text = masked(str(value))
    return repr(text) if isinstance(value, str) and (not text or any(map(str.isspace, text))) else text


def on_one_line(text: str) -> str:
    """Returns a text as a terminal can show it in one line: what is not printable (line ends, escape codes) escaped."""
    return text.translate({ord(one): repr(one)[1:-1] for one in set(text) if not one.isprintable()})


def json_on_one_line(content: Any) -> str:
    """Returns JSON that a terminal can show in one line, and that reads back as the same content."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text.translate({ord(one): json.dumps(one)[1:-1] for one in set(text) if not one.isprintable()})
