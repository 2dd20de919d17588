"""Reads a file of queries.

In: a file with a query a row: JSON lines, a JSON array, CSV, Parquet (field `query`), or plain text (a line each). To
be judged, rows also name the `relevant` ids and may name `within`, what the ids of a query's candidates begin with.
Out: `Query`s. A row that cannot be used ends the reading: a missing query would change every average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memvec.data.formats.fields import MISSING, without_text_column
from memvec.data.formats.files import SUFFIXES, file_format
from memvec.data.reader import read_file
from memvec.data.validation import reject_reason
from memvec.errors import InputError
from memvec.remote import local_path
from memvec.urls import is_url

QUERY = "query"
RELEVANT = "relevant"
WITHIN = "within"

Id = int | str


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Args:
        text: The query.
        relevant: The ids of the memories that answer it; empty where nobody has said.
        within: What the ids of the memories it is looked for among begin with; empty for all.
        place: File and row, for messages.
    """

    text: str
    relevant: frozenset[Id] = frozenset()
    within: str = ""
    place: str = ""


def read_queries(path: str | Path) -> list[Query]:
    """Returns the queries of a file; only their texts are read.

    Raises:
        InputError: The file cannot be read, a row has no usable query, or there is none at all.
    """
    path = _checked(path)
    return _at_least_one([Query(_text(text, f"{path}, row {row}")) for row, text in _rows(path)], path)


def read_judged_queries(path: str | Path) -> list[Query]:
    """Returns the queries of a file with the ids that are relevant to each.

    Raises:
        InputError: As `read_queries`, or a row does not name its relevant ids.
    """
    path = _checked(path)
    queries = []
    for row, text, ids, prefix in _rows(path, more=(RELEVANT, WITHIN)):
        place = f"{path}, row {row}"
        queries.append(Query(_text(text, place), _relevant(ids, place), _within(prefix, place), place))
    return _at_least_one(queries, path)


def _checked(path: str | Path) -> Path:
    if is_url(path := local_path(str(path))):
        raise InputError("queries", path, allowed="a file of this machine")
    path = Path(path).expanduser()
    if file_format(path) is None:
        raise InputError(path, found="not a file of queries", allowed=SUFFIXES)
    return path


def _rows(path: Path, *, more: Sequence[str] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the number, the text and further fields of every row."""
    with without_text_column(f"call the column of the queries {QUERY!r}"):
        for row, _, *fields in read_file(path, text_column=QUERY, id_column=None, more=more):
            yield row, *fields


def _text(text: Any, place: str) -> str:
    if reason := reject_reason(None, text, has_ids=False, text_column=QUERY):
        raise InputError(place, found=reason)
    return str(text)


def _relevant(ids: Any, place: str) -> frozenset[Id]:
    usable = isinstance(ids, list) and ids and all(isinstance(i, Id) and not isinstance(i, bool) for i in ids)
    if not usable:
        found = "nothing" if ids is MISSING else repr(ids)[:80]
        raise InputError(place, found=f"{RELEVANT!r}: found {found}", allowed="a list of at least one id")
    return frozenset(ids)


def _within(prefix: Any, place: str) -> str:
    if prefix is MISSING or prefix is None:
        return ""
    if not isinstance(prefix, str):
        raise InputError(place, found=f"{WITHIN!r}: found {prefix!r}", allowed="a string that ids begin with")
    return prefix


def _at_least_one(queries: list[Query], path: Path) -> list[Query]:
    if not queries:
        raise InputError(path, found="holds no query")
    return queries
