"""Rows that a program hands over, as a source like a file.

In: a `datasets.Dataset`, a pyarrow Table, a pandas or polars DataFrame, a list of texts, or a list of dictionaries.
Out: a source: its rows as they stand there, and a digest of them. So they are validated, named in `rejected.jsonl`,
computed and resumed as a file's are; a row's number is its position, from 0.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from memvec.data.formats.fields import MISSING, Record, Wanted, check_columns, field_of, missing_column, paths
from memvec.data.formats.json_rows import object_records
from memvec.data.source import Source, one_split
from memvec.data.texts import as_values
from memvec.errors import InputError, one_line

NAME = "data"  # what messages and `rejected.jsonl` call it
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class GivenRows:
    """Texts or dictionaries in a list, or the rows of a pandas DataFrame.

    Args:
        rows: The list; or the DataFrame.
        name: What messages and `rejected.jsonl` call it.
    """

    rows: Sequence[Any] | Any
    name: str = NAME

    @property
    def has_columns(self) -> bool:
        """Whether its rows have named fields; plain texts have none."""
        return _is_frame(self.rows) or any(isinstance(row, Mapping) for row in self.rows)

    def records(self, *, text_column: str, id_column: str | None, more: Sequence[str] = ()) -> Iterator[Record]:
        """Yields `(row, id, text, *more)` as `memvec.data.reader` says.

        Raises:
            InputError: No row has the text, or something among them is no row.
        """
        if not self.has_columns:
            yield from ((row, MISSING, _plain(text), *(MISSING for _ in more)) for row, text in enumerate(self.rows))
            return
        wanted = Wanted(text_column, id_column, more)
        for row, *values in object_records(enumerate(self._objects(wanted)), self.name, wanted):
            yield row, *map(_plain, values)

    def column_types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        """Returns nothing: each value says its own type."""
        return {}

    def column_names(self, *, text_column: str) -> list[str]:
        """Returns the names of the columns; of dictionaries those of the first."""
        rows: Any = self.rows
        if not self.has_columns:
            return []
        return list(map(str, rows.columns if _is_frame(rows) else rows[0]))

    def digest(self, *, columns: Sequence[str | None]) -> str:
        """Returns a hex SHA-256 of the texts, or of the named fields of all rows."""
        state = hashlib.sha256()
        if not self.has_columns:
            for text in self.rows:
                state.update(_content([text]))
            return state.hexdigest()
        names = [name for name in columns if name is not None]
        for row in self._objects(Wanted(names[0], None, names[1:])):
            state.update(_content([field_of(row, name) for name in names] if isinstance(row, Mapping) else [row]))
        return state.hexdigest()

    def _objects(self, wanted: Wanted) -> Iterator[Any]:
        return _frame_rows(self.rows, self.name, wanted) if _is_frame(self.rows) else iter(self.rows)


def source_of(data: Any, *, split: str | None = None) -> Source | GivenRows:
    """Returns what a program hands over as a source.

    Args:
        data: A `datasets.Dataset` (or a `DatasetDict`), a pyarrow Table, a pandas or polars DataFrame, a list of texts,
            or a list of dictionaries.
        split: Which of a `DatasetDict`; None is `train`.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(data, datasets.Dataset | datasets.DatasetDict):
        return Source(NAME, one_split(data, NAME, split))
    if isinstance(data, datasets.IterableDataset | datasets.IterableDatasetDict):
        found = f"found a {type(data).__name__}, which has no rows to come back to"
        raise InputError(NAME, found=found, advice="pass a Dataset")
    if _is_frame(data):
        return GivenRows(data)
    if hasattr(data, "to_arrow") and hasattr(data, "columns"):
        data = data.to_arrow()
    if isinstance(data, pa.Table | pa.RecordBatch):
        return Source(NAME, _dataset(pa.table(data)))
    return GivenRows(as_values(data, name=NAME))


def _dataset(table: pa.Table) -> datasets.Dataset:
    """Returns an Arrow table as a dataset, which has no type for positions in a dictionary."""
    try:
        for at, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if pa.types.is_dictionary(column.type):
                table = table.set_column(at, name, column.cast(column.type.value_type))
        return datasets.Dataset(table)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(NAME, found=f"the table cannot be read: {one_line(error)}") from error


def _is_frame(data: Any) -> bool:
    """Whether it is a pandas DataFrame, which is not imported to tell."""
    return hasattr(data, "iloc") and hasattr(data, "columns")


def _frame_rows(frame: Any, name: str, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yields a DataFrame's rows with the columns that are wanted; what pandas calls missing is null."""
    columns = list(frame.columns)
    check_columns(name, columns, wanted)
    outer = {each for field in wanted.names if field for each in (field, *(first for first, _ in paths(field)))}
    present = [column for column in columns if column in outer]
    if not present:
        raise missing_column(name, wanted.text, [str(column) for column in columns])
    for start in range(0, len(frame), ROWS_AT_ONCE):
        part = frame[present].iloc[start : start + ROWS_AT_ONCE]
        yield from part.astype(object).where(part.notna(), None).to_dict("records")


def _plain(value: Any) -> Any:
    """Returns numpy's scalars as Python's, and a UUID as it is commonly written."""
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, uuid.UUID) else value


def _content(values: Sequence[Any]) -> bytes:
    """Returns fields as bytes that are the same in every process."""
    try:
        return json.dumps([_plain(value) for value in values], default=_described, skipkeys=True).encode() + b"\n"
    except (ValueError, RecursionError):  # a list that holds itself
        return b"\n".join(_type_name(value).encode() for value in values)


def _described(value: Any) -> Any:
    """Returns the content of what JSON has no type for; of a class that nobody knows, the name alone."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, date | time | timedelta | Decimal | bytes | uuid.UUID):
        return f"{_type_name(value)} {value!s}"
    return _type_name(value)


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
