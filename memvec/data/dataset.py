"""Reads and validates memory texts into one memory-mapped `Dataset(id, text, file, row)`.

In: sources of rows. Out: `entries.arrow`, which holds every row that can be used, and a line in `rejected.jsonl` for
every row that cannot: where it stood, its id, and why. No row is dropped silently.

How: rows stream through `reject_reason` into Arrow record batches on disk, so memory does not grow with the input; 16
bytes an id are kept until the end, to find ids that stand there twice. Further columns that are kept go their own way
(`memvec.data.keeping`), since their types are known only at the end. Why into the run's folder and not into the
datasets cache: the texts are private and go when the run is finished, and nothing has to be invalidated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset

from memvec.data.formats.fields import MISSING, Record
from memvec.data.keeping import KeptColumns, TypedSource
from memvec.data.validation import Rejection, reject_reason
from memvec.digest import as_pairs, digest, first_occurrence
from memvec.errors import InputError
from memvec.features import ENTRY_FEATURES
from memvec.files import atomic_file, writing
from memvec.schema import FILE, ID, ROW, TEXT
from memvec.streams import write_stream

ROWS_PER_BATCH = 10_000
CHARACTERS_PER_BATCH = 32_000_000
INT64_RANGE = range(-(2**63), 2**63)
AUTO = "auto"  # the column of the default name, where there is one


class RecordSource(TypedSource, Protocol):
    """Where rows come from: a `memvec.data.source.Source`, or one whose rows are made into texts first."""

    def digest(self, *, columns: Sequence[str | None]) -> str:
        """Returns a digest of the content, of these columns where it has columns."""

    def records(self, *, text_column: str, id_column: str | None, more: Sequence[str] = ()) -> Iterator[Record]:
        """Yields `(row, id, text, *more)` as `memvec.data.reader` says."""


@dataclass(frozen=True)
class EntriesSummary:
    """What reading the input came to.

    Args:
        files: Names of the sources; the `file` column counts in this list.
        rows: Rows read.
        rejected: Rows that could not be used.
        integer_ids: Whether every id was an integer.
        ids: Where the ids come from, in words: a column, or row numbers.
    """

    files: list[str]
    rows: int
    rejected: int
    integer_ids: bool
    ids: str

    @property
    def accepted(self) -> int:
        """Rows that can be used."""
        return self.rows - self.rejected


def asked_column(column: str | None, default: str) -> str | None:
    """Returns the name of a column, where `auto` stands for a default one that need not be there."""
    return default if column == AUTO else column


def write_entries(
    sources: Sequence[RecordSource],
    *,
    entries_path: Path,
    rejected_path: Path,
    kept: KeptColumns | None = None,
    text_column: str = TEXT,
    id_column: str | None = AUTO,
    on_error: Literal["reject", "fail"] = "reject",
    limit: int | None = None,
) -> EntriesSummary:
    """Reads every row of `sources` and writes the usable ones to `entries_path`, the others to `rejected_path`.

    Args:
        sources: Where the rows come from, in order.
        entries_path: The Arrow stream file to write; it appears whole or not at all.
        rejected_path: The JSON lines to write.
        kept: What writes the columns that are kept; None keeps none.
        text_column: Name of the field with the text.
        id_column: Name of the field with the id. None makes the row number the id; `auto` too, where no row has `id`.
        on_error: `reject` names a row that cannot be used and continues; `fail` stops at the first.
        limit: Read at most this many rows; None reads all.

    Returns:
        The counts, and whether all ids were integers.

    Raises:
        InputError: A source cannot be read, some rows have an id and others do not, no row has the id column that was
            named, no row can be used, or `on_error` is `fail` and a row cannot be used.
    """
    with (
        atomic_file(entries_path) as unchecked,
        atomic_file(rejected_path) as rejected_file,
        rejected_file.open("w", encoding="utf-8") as rejected,
        kept or KeptColumns((), entries_path) as kept_columns,
    ):
        rejected_rows = _RejectedRows(rejected, fail=on_error == "fail")
        reader = _EntryReader(sources, text_column, id_column, rejected_rows, limit, kept_columns)
        with writing(entries_path):
            write_stream(unchecked, reader.batches(), schema=ENTRY_FEATURES.arrow_schema)
        first = first_occurrence(as_pairs(reader.id_digests))
        is_first = first == np.arange(len(first))
        if not is_first.all():
            dataset = Dataset.from_file(str(unchecked)).with_format("arrow")
            for duplicate in _duplicates(dataset, first, reader.names):
                reader.rejected.add(duplicate)
            unique = unchecked.with_name(f"{unchecked.name}.unique")
            unique_rows = dataset.select(np.flatnonzero(is_first))
            write_stream(unique, _record_batches(unique_rows), schema=ENTRY_FEATURES.arrow_schema)
            unique.replace(unchecked)
        reader.check_ids()
        ids = f"column {reader.id_column!r}" if reader.has_ids else "row numbers"
        summary = EntriesSummary(reader.names, reader.rows, reader.rejected.count, reader.integer_ids, ids)
        if summary.accepted == 0:
            example = f"; the first: {reader.rejected.first}" if reader.rejected.first else ""
            raise InputError(", ".join(reader.names[:3]), found=f"none of {summary.rows} rows can be used{example}")
        kept_columns.finish(text_column=text_column, is_kept=is_first)
    return summary


class _RejectedRows:
    """Writes rejected rows as they come, so that memory does not grow with them; or ends the job at the first."""

    def __init__(self, stream: IO[str], *, fail: bool) -> None:
        self.stream = stream
        self.fail = fail
        self.count = 0
        self.first: str | None = None

    def add(self, rejection: Rejection) -> None:
        error = InputError(f"{rejection.file}, row {rejection.row}", found=rejection.reason)
        if self.fail:
            raise error
        self.first = self.first or str(error)
        self.count += 1
        self.stream.write(f"{rejection.to_json()}\n")


class _EntryReader:
    """Streams record batches of usable rows and remembers what is known only at the end.

    State: a digest of each accepted id, whether ids are integers, whether there are any, rows read, rows rejected.
    """

    def __init__(
        self,
        sources: Sequence[RecordSource],
        text_column: str,
        id_column: str | None,
        rejected: _RejectedRows,
        limit: int | None,
        kept: KeptColumns,
    ) -> None:
        self.sources = sources
        self.names = [source.name for source in sources]
        self.text_column = text_column
        self.id_column = asked_column(id_column, ID)
        self.ids_asked = id_column not in (None, AUTO)
        self.rejected = rejected
        self.limit = limit
        self.kept = kept
        self.rows = 0
        self.integer_ids = True
        self.id_digests = bytearray()
        self.found_ids = False
        self.has_ids: bool | None = True if self.ids_asked else None  # not known before the first row

    def batches(self) -> Iterator[pa.RecordBatch]:
        ids: list[str] = []
        texts: list[str] = []
        files: list[int] = []
        rows: list[int] = []
        characters = 0
        for file, row, record_id, text in self._usable():
            ids.append(record_id)
            texts.append(text)
            files.append(file)
            rows.append(row)
            characters += len(text)
            if len(ids) == ROWS_PER_BATCH or characters > CHARACTERS_PER_BATCH:
                yield pa.record_batch([ids, texts, files, rows], schema=ENTRY_FEATURES.arrow_schema)
                ids, texts, files, rows, characters = [], [], [], [], 0
        if ids:
            yield pa.record_batch([ids, texts, files, rows], schema=ENTRY_FEATURES.arrow_schema)

    def _usable(self) -> Iterator[tuple[int, int, str, str]]:
        """Yields `(file, row, id, text)` of the rows that can be used."""
        for file, source in enumerate(self.sources):
            self.kept.begin(source)
            records = source.records(text_column=self.text_column, id_column=self.id_column, more=self.kept.names)
            for row, found_id, text, *kept in records:
                if self.limit is not None and self.rows >= self.limit:
                    return
                self.rows += 1
                has_ids = self._rows_have_ids(found_id, source.name, row)
                reason = reject_reason(
                    found_id,
                    text,
                    has_ids=has_ids,
                    ids_asked=self.ids_asked,
                    text_column=self.text_column,
                    id_column=self.id_column,
                ) or self.kept.add(row, kept)
                if reason is not None:
                    self.rejected.add(Rejection(source.name, row, None if found_id is MISSING else found_id, reason))
                    continue
                record_id = found_id if has_ids else self.rows - 1
                self.integer_ids = self.integer_ids and isinstance(record_id, int) and record_id in INT64_RANGE
                name = str(record_id)
                self.id_digests += digest(name.encode())
                yield file, row, name, text

    def _rows_have_ids(self, found_id: Any, name: str, row: int) -> bool:
        """The first row decides; a later row without an id is rejected, a first id further down is an error."""
        self.found_ids = self.found_ids or found_id is not MISSING
        if self.has_ids is None:
            self.has_ids = found_id is not MISSING
        if not self.has_ids and found_id is not MISSING:
            found = f"has an {self.id_column!r}, but the first row of the input has none"
            advice = "give every row an id, or set data.id_column=null to use row numbers"
            raise InputError(f"{name}, row {row}", found=found, advice=advice)
        return self.has_ids

    def check_ids(self) -> None:
        """Refuses an input of which no row has the id column that was asked for."""
        if self.ids_asked and self.rows and not self.found_ids:
            found = f"no row has the id column {self.id_column!r}"
            advice = "set data.id_column to one that is there, or to null to use row numbers"
            raise InputError(", ".join(self.names[:3]), found=found, advice=advice)


def _duplicates(dataset: Dataset, first: np.ndarray[Any, np.dtype[np.int64]], names: list[str]) -> Iterator[Rejection]:
    for index in np.flatnonzero(first != np.arange(len(first))).tolist():
        found, original = dataset[index], dataset[int(first[index])]
        where = f"{names[original[FILE][0].as_py()]}, row {original[ROW][0].as_py()}"
        reason = f"duplicate id; it stands first in {where}"
        yield Rejection(names[found[FILE][0].as_py()], found[ROW][0].as_py(), found[ID][0].as_py(), reason)


def _record_batches(dataset: Dataset) -> Iterator[pa.RecordBatch]:
    for table in dataset.iter(ROWS_PER_BATCH):
        yield from table.combine_chunks().to_batches()
