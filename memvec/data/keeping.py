"""Writes the kept columns of an input: values as they are read become columns of one type each.

In: the values of every usable row, as they are read. Out: an Arrow stream file, in which each column has one type; its
row `i` is row `i` of the entries.

How: a Parquet file, an Arrow file or a dataset declares its types, CSV has strings, and of JSON each value says its
own, so a column's type is known only at the end. Values are spooled a batch at a time, each batch an Arrow stream with
types of its own, and brought to the types that all batches have in common in a second pass. Memory does not grow with
the input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.data.column_types import ANY_SIGN, SIGNED, common_type, first_misfit, settled, size_of
from memvec.data.formats.fields import MISSING, NAMES_SHOWN
from memvec.errors import InputError, one_line
from memvec.features import kept_features
from memvec.files import atomic_file, create_file, writing
from memvec.streams import write_stream

ROWS_PER_BATCH = 10_000
BYTES_PER_BATCH = 32_000_000
MOST_FIELDS = 1_000  # of different names in the objects of a column
REMEDY = "give it values of one type, or leave it out of data.keep_columns"


class TypedSource(Protocol):
    """Where rows come from."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def column_types(self, names: Sequence[str]) -> Mapping[str, pa.DataType]:
        """Returns the types of columns by their names, as far as it declares them."""

    def column_names(self, *, text_column: str) -> list[str]:
        """Returns the names of its columns."""


class KeptColumns:
    """Values of kept columns on their way to a file; leaving the context removes what is only on its way.

    Args:
        names: Of the columns, as `memvec.data.kept.names_to_keep` returns them; without any, nothing is written.
        path: The file.
    """

    def __init__(self, names: Sequence[str], path: Path) -> None:
        self.names = names
        self.path = path
        self._spool = path.with_name(f".{path.name}-spool.{os.getpid()}.partial")
        self._types: dict[str, pa.DataType] = dict.fromkeys(names, pa.null())
        self._declared: dict[str, pa.DataType] = {}  # by the source of the rows that come now
        self._source = ""  # the name of that
        self._sources: list[TypedSource] = []
        self._first: dict[str, str] = {}  # where a column first had a value
        self._absent = set(names)  # columns that no row has had
        self._fields: dict[str, set[str]] = {name: set() for name in names}
        self._numbers: list[int] = []  # of the rows that wait for the next batch
        self._rows: list[list[Any]] = []
        self._bytes = 0

    def begin(self, source: TypedSource) -> None:
        """Says where the next rows come from.

        Raises:
            InputError: It declares a type that no result can have.
        """
        self._flush()
        self._source, self._declared = source.name, {}
        self._sources.append(source)
        for name, kind in source.column_types(self.names).items() if self.names else ():
            try:
                self._declared[name] = kept_features({name: kind}).arrow_schema.field(0).type
            except ValueError as error:
                raise InputError(source.name, found=one_line(error)) from error
        self._absent -= self._declared.keys()

    def add(self, row: int, values: Sequence[Any]) -> str | None:
        """Takes the values of a usable row, or says why they cannot be kept.

        Args:
            row: Its number, for messages.
            values: As they are read, one for each name; `MISSING` is null.

        Raises:
            InputError: A value has no type in common with those before it, or a column has too many fields.
        """
        if not self.names:
            return None
        size = 0
        for name, value in zip(self.names, values, strict=True):
            try:
                integers = ANY_SIGN if name in self._declared else SIGNED
                size += size_of(value, integers=integers, fields=self._fields[name])
            except ValueError as error:
                return f"{name!r} {error}"
            if len(self._fields[name]) > MOST_FIELDS:
                found = f"the objects of {name!r} have more than {MOST_FIELDS:,} different fields"
                advice = f"keep those that are meant, each as {name}.FIELD"
                raise InputError(f"{self._source}, row {row}", found=found, advice=advice)
            if value is not MISSING:
                self._absent.discard(name)
                if value is not None and name not in self._first:
                    self._first[name] = f"{self._source}, row {row}"
        self._numbers.append(row)
        self._rows.append([None if value is MISSING else value for value in values])
        self._bytes += size
        if len(self._rows) == ROWS_PER_BATCH or self._bytes > BYTES_PER_BATCH:
            self._flush()
        return None

    def finish(self, *, text_column: str, is_kept: NDArray[np.bool_]) -> None:
        """Writes the file.

        Args:
            text_column: Name of the field with the text.
            is_kept: Which of the rows go into the file, `[N]`.

        Raises:
            InputError: A column is in no row, or of a type that no result can have.
        """
        if not self.names:
            return
        self._flush()
        if self._absent:
            raise self._no_such_column(min(self._absent), text_column)
        try:
            schema = kept_features({name: settled(kind) for name, kind in self._types.items()}).arrow_schema
        except ValueError as error:
            raise InputError(self._files, found=f"data.keep_columns: {one_line(error)}") from error
        with atomic_file(self.path) as partial:
            write_stream(partial, self._kept_rows(schema, is_kept), schema=schema)

    def __enter__(self) -> KeptColumns:
        """Removes what an attempt that was killed has left; returns itself."""
        self._spool.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Removes what was only on its way."""
        self._spool.unlink(missing_ok=True)

    def _flush(self) -> None:
        """Spools the rows that wait."""
        if not self._rows:
            return
        columns = [self._column(name, [row[at] for row in self._rows]) for at, name in enumerate(self.names)]
        batch = pa.record_batch(columns, names=list(self.names))
        with (
            writing(self._spool),
            os.fdopen(create_file(self._spool, os.O_APPEND), "ab") as sink,
            pa.ipc.new_stream(sink, batch.schema) as stream,
        ):
            stream.write_batch(batch)
        self._numbers, self._rows, self._bytes = [], [], 0

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        """Returns the values of a column that wait, and widens its type to theirs."""
        try:
            column = pa.array(values, type=self._declared.get(name))
            self._types[name] = common_type(self._types[name], column.type)
        except (pa.ArrowException, OverflowError) as error:
            raise self._no_common_type(name, values, error) from error
        return column

    @property
    def _files(self) -> str:
        """The sources in words."""
        return ", ".join(source.name for source in self._sources[:3])

    def _no_such_column(self, name: str, text_column: str) -> InputError:
        names = [one for source in self._sources[:3] for one in source.column_names(text_column=text_column)]
        found = ", ".join([*dict.fromkeys(names)][:NAMES_SHOWN]) or "none"
        missing = f"no row has the column {name!r}; columns found: {found}"
        return InputError(self._files, found=missing, advice="set data.keep_columns")

    def _no_common_type(self, name: str, values: list[Any], error: Exception) -> InputError:
        place = f"{self._source}, rows {self._numbers[0]} to {self._numbers[-1]}"
        if name in self._declared:
            change = f"is of type {self._declared[name]}, but {self._types[name]} before it"
            return InputError(self._source, found=f"column {name!r} {change}", advice=REMEDY)
        misfit = first_misfit(values, self._types[name])
        if misfit is None:
            return InputError(place, found=f"{name!r}: {one_line(error)}", advice=REMEDY)
        position, found, kind = misfit
        place = f"{self._source}, row {self._numbers[position]}"
        if found is None:
            return InputError(place, found=f"{name!r} cannot be kept: {one_line(error)}", advice=REMEDY)
        before = f"of type {kind} from {self._first[name]} on"
        return InputError(place, found=f"{name!r} is of type {found}, but {before}", advice=REMEDY)

    def _kept_rows(self, schema: pa.Schema, is_kept: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """Yields those rows of the spool that go into the file."""
        start = 0
        for batch in self._spooled(schema):
            yield batch.filter(pa.array(is_kept[start : start + len(batch)]))
            start += len(batch)

    def _spooled(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields the rows of the spool, brought to the types of a schema."""
        with pa.OSFile(str(self._spool), "rb") as source:
            while source.tell() < source.size():
                for batch in pa.ipc.open_stream(source):
                    columns = [self._cast(column, field) for column, field in zip(batch.columns, schema, strict=True)]
                    yield pa.record_batch(columns, schema=schema)

    def _cast(self, column: pa.Array, field: pa.Field) -> pa.Array:
        try:
            return column.cast(field.type)
        except pa.ArrowException as error:  # an integer among floats that no float is equal to
            raise InputError(self._files, found=f"{field.name!r}: {one_line(error)}", advice=REMEDY) from error
