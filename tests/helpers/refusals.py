"""Expectations of memvec's errors, field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from memvec.errors import UNSET, MemvecError

Said = str | re.Pattern[str]


@contextmanager
def refused(
    kind: type[MemvecError],
    subject: Said | Path = "",
    value: Any = UNSET,
    *,
    found: Said = "",
    allowed: Said = "",
    advice: Said = "",
) -> Iterator[pytest.ExceptionInfo[MemvecError]]:
    """Expects an error of a kind, as `pytest.raises` does, and compares those of its fields that are given.

    Args:
        kind: The error's type.
        subject: All of it; of a path, the end is enough.
        value: All of it.
        found: A part of it, or a pattern.
        allowed: A part of it, or a pattern.
        advice: A part of it, or a pattern.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    if isinstance(subject, re.Pattern):
        assert subject.search(error.subject), error
    elif subject:
        assert error.subject == str(subject) or error.subject.endswith(f"/{subject}"), error
    if value is not UNSET:
        assert (error.value, str(error.value)) == (value, str(value)), error  # 1 is not true
    for expected, actual in ((found, error.found), (allowed, error.allowed), (advice, error.advice)):
        assert expected.search(actual) if isinstance(expected, re.Pattern) else expected in actual, error


def refused_as(expected: MemvecError) -> AbstractContextManager[pytest.ExceptionInfo[MemvecError]]:
    """Expects an error as `refused` does, of which another one says the type and the fields, or their parts."""
    fields = {name: getattr(expected, name) for name in ("subject", "value", "found", "allowed", "advice")}
    return refused(type(expected), **fields)
