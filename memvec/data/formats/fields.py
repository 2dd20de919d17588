"""Fields of a row: which ones are wanted, and how they are found by name.

In: a row as its format's parser gives it, or the column names of a table. Out: the fields that were asked for, where
`MISSING` stands for a field that is not there and `Malformed` for the text of a row whose fields cannot be told apart.

A name with dots, `memory.text`, means the field `text` of the object `memory`, unless a field is literally called so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from memvec.errors import InputError

Record = tuple[Any, ...]  # (row, id, text, further columns …)

NAMES_SHOWN = 20
SET_TEXT_COLUMN = "set data.text_column"


class _Missing:
    """The type of `MISSING`: a field that a row does not have, which is not the same as null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@contextmanager
def without_text_column(advice: str) -> Iterator[None]:
    """Has the error about a column that is not there advise what helps where the column is not `data.text_column`.

    Args:
        advice: What to do in its place.
    """
    try:
        yield
    except InputError as error:
        if error.advice == SET_TEXT_COLUMN:
            error.advice = advice
        raise


@dataclass(frozen=True)
class Malformed:
    """Stands in a text's place where the row is broken, so that the row is rejected and not half of it taken.

    Args:
        reason: What is wrong with the row, in words.
    """

    reason: str


@dataclass(frozen=True)
class Wanted:
    """The fields that are asked for.

    Args:
        text: Name of the field with the text.
        id: Name of the field with the id, or None where rows have none.
        more: Names of further fields, which a row need not have.
    """

    text: str
    id: str | None = None
    more: Sequence[str] = ()

    @property
    def names(self) -> tuple[str | None, ...]:
        """All names, in a record's order."""
        return (self.id, self.text, *self.more)


def paths(name: str) -> Iterator[tuple[str, str]]:
    """Yields the ways to read a name with dots as an object's name and a field's within it."""
    for at, character in enumerate(name):
        if character == ".":
            yield name[:at], name[at + 1 :]


def field_of(record: Mapping[str, Any], name: str | None) -> Any:
    """Returns the field of that name, or `MISSING`; a field within an object that is null is null.

    Args:
        record: A row as a JSON object.
        name: The field's name, with dots where it lies within an object; None is `MISSING`.
    """
    if name is None:
        return MISSING
    if name in record:
        return record[name]
    for outer, inner in paths(name):
        inside = record.get(outer, MISSING)
        if inside is None:
            return None
        if isinstance(inside, Mapping) and (found := field_of(inside, inner)) is not MISSING:
            return found
    return MISSING


def check_columns(source: str, columns: Sequence[str], wanted: Wanted) -> None:
    """Refuses a table whose columns cannot be told apart.

    Raises:
        InputError: Two columns have the name of one that is read.
    """
    for name in wanted.names:
        if name is not None and columns.count(name) > 1:
            raise InputError(source, found=f"{columns.count(name)} columns are called {name!r}", allowed="one")


def missing_column(source: str, column: str, found: Sequence[str]) -> InputError:
    """Returns the error about a text column that no row has.

    Args:
        source: The file's name.
        column: What was looked for.
        found: What is there instead.
    """
    shown = ", ".join(found[:NAMES_SHOWN]) or "none"
    return InputError(source, found=f"no column {column!r}; columns found: {shown}", advice=SET_TEXT_COLUMN)
