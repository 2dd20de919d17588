"""Texts that a program hands over, as a list of strings.

In: what a caller calls its texts: a list, a tuple, or a column of numpy, pandas, polars, `datasets` or pyarrow. Out: a
list of plain strings, each of which can be embedded. What would be read as something else than its texts is refused: a
table as its column names, a dictionary as its keys, one string as its characters, a generator once and never again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from memvec.data.validation import reject_reason
from memvec.errors import InputError

ALLOWED = "a list, tuple, numpy array, pandas Series, datasets Column or pyarrow Array of strings"
# Methods by which arrays and columns give their values in order, whatever they are indexed by.
TO_LIST = ("to_pylist", "to_list", "tolist")


def as_values(value: Any, *, name: str) -> list[Any]:
    """Returns the values of a list or column; each of them may still be no text.

    Args:
        value: What a caller gave.
        name: What the caller calls it, for messages.

    Raises:
        InputError: It is no list or column.
    """
    if problem := _problem(value):
        raise InputError(name, **problem)
    to_list = next((method for method in TO_LIST if hasattr(value, method)), None)
    if to_list is None and not isinstance(value, Sequence):
        raise InputError(name, found=f"found {_kind(value)}", allowed=ALLOWED)
    values = getattr(value, to_list)() if to_list else list(value)
    if not isinstance(values, list):
        raise InputError(name, found=f"found one value of type {_kind(value)}", allowed=ALLOWED)
    return values


def why_unusable(text: Any) -> str | None:
    """Says why a value is no text that can be embedded, or None where it is one."""
    reason = reject_reason(None, text, has_ids=False, text_column="text")
    return None if reason is None else reason.removeprefix(repr("text")).strip()


def as_texts(value: Any, *, name: str) -> list[str]:
    """Returns texts as a list of plain strings.

    Args:
        value: What a caller gave.
        name: What the caller calls it, for messages.

    Raises:
        InputError: It is no list or column of texts, it is empty, or one of the texts cannot be used.
    """
    texts = as_values(value, name=name)
    if not texts:
        raise InputError(name, found="found none", allowed=ALLOWED)
    for position, text in enumerate(texts):
        if reason := why_unusable(text):
            raise InputError(f"{name}[{position}]", found=reason)
    return [str.__str__(text) for text in texts]  # numpy's and other subclasses' values, as tokenizers take them


def _problem(value: Any) -> dict[str, str] | None:
    """Returns the fields of the error about what is known not to be texts."""
    kind = f"found a {_kind(value)}"
    if isinstance(value, str):
        return {"found": "found one string", "allowed": f"a list of texts, such as [{name_of_one(value)}]"}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"found": f"found {_kind(value)}", "advice": "decode it, and put the text into a list"}
    if isinstance(value, Mapping):
        advice = "pass list(….values()), or one of its columns"
        return {"found": f"{kind}, of which only the keys would be read", "advice": advice}
    if isinstance(value, Set):
        return {"found": f"{kind}, which has no order", "advice": "pass a list"}
    if isinstance(value, Iterator):
        return {"found": f"{kind}, which can be read only once", "advice": "pass list(…)"}
    columns = _columns(value)
    if columns is not None:
        shown = ", ".join(map(str, columns[:20])) or "none"
        advice = f"name one of its columns, such as table['text']; columns: {shown}"
        return {"found": f"found a table ({_kind(value)})", "advice": advice}
    dimensions = getattr(value, "ndim", 1)
    if isinstance(dimensions, int) and dimensions != 1:
        return {"found": f"{kind} of {dimensions} dimensions", "allowed": "one, a text each"}
    return None


def name_of_one(text: str) -> str:
    """Returns the beginning of a text, quoted, for a message."""
    return repr(text if len(text) <= 30 else f"{text[:30]}…")


def _columns(value: Any) -> list[Any] | None:
    """Returns the column names of a table of pandas, polars, pyarrow or `datasets`; None where it is no table."""
    for attribute in ("column_names", "columns"):
        names = getattr(value, attribute, None)
        if names is not None and not callable(names):
            return list(names)
    return None


def _kind(value: Any) -> str:
    return type(value).__name__
