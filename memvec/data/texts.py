"""Texts that a program hands over, as a list.

In: whatever a caller calls texts. Out: a list with one value a row, or an error that says what to pass instead: a
container that Python can walk through is not always a list of texts (a dictionary gives its keys, a DataFrame the names
of its columns, a generator is used up).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memvec.errors import InputError


def as_values(texts: Any, *, name: str) -> list[Any]:
    """Returns the values of a list of texts; each of them may still be no text.

    Args:
        texts: A list, tuple, numpy array, pandas Series, Arrow array or a column of `datasets`.
        name: What the caller calls it, for the message.

    Raises:
        InputError: It is none of these.
    """
    kind = type(texts).__name__
    if isinstance(texts, str | bytes):
        raise InputError(f"{name}: found one {'string' if isinstance(texts, str) else kind}; allowed: a list of texts")
    if hasattr(texts, "to_pylist"):  # Arrow
        values: list[Any] = texts.to_pylist()
        return values
    if hasattr(texts, "tolist") and getattr(texts, "ndim", 0) == 1:  # numpy, pandas Series
        return list(texts.tolist())
    if isinstance(texts, Sequence) or (kind == "Column" and hasattr(texts, "__getitem__")):
        return list(texts)
    raise InputError(f"{name}: found {kind}; allowed: a list of texts, such as {name}=list(…) or a table's one column")
