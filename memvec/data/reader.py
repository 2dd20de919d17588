"""Reads the rows of input files, whatever their format, as (row, id, text) just as they stand there.

In: one file (`.jsonl .json .csv .tsv .parquet .arrow .txt`, the text formats also `.gz`) or a loaded
`datasets.Dataset`. Out: an iterator of `(row, id, text)`, and behind them the fields of further columns that were asked
for, where `MISSING` stands for a field that is not there and `Malformed` for the text of a row whose fields cannot be
told apart.

How: the text formats are read a line at a time with Python's own parsers, the columnar ones a record batch at a
time with pyarrow. Why not `datasets.load_dataset` for all: its JSON and CSV readers guess types a block at a time
(one integer among the texts changes every string of that block, `NA` becomes null, dates become timestamps), and
a row they cannot read ends the job. Here a bad row stays one row, and `memvec.data.dataset` decides about it.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from memvec.errors import InputError, one_line

Record = tuple[Any, ...]  # (row, id, text, further columns …)

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
RECORDS_PER_READ = 10_000

csv.field_size_limit(2**31 - 1)  # a memory text may be longer than the csv module's default 131,072 characters


class _Missing:
    """The type of `MISSING`: a field that a row does not have, which is not the same as null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Malformed:
    """Stands in a text's place where the row is broken, so that the row is rejected and not half of it taken.

    Args:
        reason: What is wrong with the row, in words.
    """

    reason: str


def file_format(path: Path) -> str | None:
    """Returns the suffix that says how to read `path` (without `.gz`), or None where it is not one of ours."""
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    allowed = TEXT_SUFFIXES if path.suffix.lower() == ".gz" else SUFFIXES
    return suffix.lower() if suffix.lower() in allowed else None


def read_file(path: Path, *, text_column: str, id_column: str | None, more: Sequence[str] = ()) -> Iterator[Record]:
    """Yields the rows of one file.

    Args:
        path: An existing file with one of `SUFFIXES`, text formats also with `.gz` behind it.
        text_column: Name of the field with the text. A `.txt` file has none: each line is a text.
        id_column: Name of the field with the id, or None where rows have none.
        more: Names of further fields, which a row need not have.

    Yields:
        `(row, id, text, *more)`: row is a line number from 1 (text formats; the last line of a CSV record of several)
        or a row number from 0 (columnar formats and JSON arrays); the others are what the file holds, of whatever type,
        or `MISSING`; text may be `Malformed`.

    Raises:
        InputError: The file is empty, cannot be read, or no row of it has the text column.
    """
    readers = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_txt}
    kind = file_format(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        if kind in readers:
            yield from readers[kind](path, text_column, id_column, more)
        else:
            yield from _read_columnar(path, text_column, id_column, more)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start} of what was being read)") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error


def read_dataset(
    dataset: Dataset, *, name: str, text_column: str, id_column: str | None, more: Sequence[str] = ()
) -> Iterator[Record]:
    """Yields the rows of a loaded dataset, as `read_file` does; `name` stands for it in messages."""
    batches = dataset.with_format("arrow").iter(RECORDS_PER_READ)
    yield from _records_of_tables(batches, dataset.column_names, name, text_column, id_column, more)


def _open_binary(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields numbered lines, so that what is not UTF-8 can be named by its line; a byte order mark is dropped."""
    with _open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _read_txt(path: Path, text_column: str, id_column: str | None, more: Sequence[str]) -> Iterator[Record]:
    for number, line in _decoded_lines(path):
        yield number, MISSING, line.rstrip("\r\n"), *(MISSING for _ in more)


def _read_json(path: Path, text_column: str, id_column: str | None, more: Sequence[str]) -> Iterator[Record]:
    seen: set[str] = set()
    found_text = False
    for number, record in _json_records(path):
        if not isinstance(record, dict):
            found = type(record).__name__
            raise InputError(f'{path}, row {number}: found {found}, expected an object such as {{"{text_column}": …}}')
        found_text = found_text or text_column in record
        if not found_text and len(seen) < 20:
            seen.update(record)
        record_id = MISSING if id_column is None else record.get(id_column, MISSING)
        yield number, record_id, record.get(text_column, MISSING), *(record.get(name, MISSING) for name in more)
    if not found_text:
        raise _missing_column(str(path), text_column, sorted(seen))


def _json_records(path: Path) -> Iterator[tuple[int, Any]]:
    with _open_binary(path) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):  # one array: has to be read whole, which JSON lines need not
        with _open_binary(path) as stream:
            records = _parse_json(stream.read().decode("utf-8-sig"), path)
        yield from enumerate(records)
        return
    for number, line in _decoded_lines(path):
        if line.strip():
            yield number, _parse_json(line, path, first_line=number)


def _parse_json(content: str, path: Path, *, first_line: int = 1) -> Any:
    content = content.rstrip()  # what breaks off does so at its end, not on the line behind it
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; a nesting of thousands
        raise InputError(f"{path}, line {first_line}: JSON that cannot be read ({one_line(error)})") from error


def _read_csv(path: Path, text_column: str, id_column: str | None, more: Sequence[str]) -> Iterator[Record]:
    delimiter = "\t" if file_format(path) == ".tsv" else ","
    lines = (line for _, line in _decoded_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_columns(str(path), header, text_column, id_column)
        text_at = header.index(text_column)
        id_at = header.index(id_column) if id_column in header else None
        for fields in reader:
            if not fields:
                continue  # an empty line between records
            text: Any = fields[text_at] if text_at < len(fields) else MISSING
            if len(fields) > len(header):  # most often a text with a delimiter and no quotes: not all of it is here
                text = Malformed(f"{len(fields)} fields, where the header has {len(header)} (a text without quotes?)")
            record_id = MISSING if id_at is None else fields[id_at] if id_at < len(fields) else None
            others = (dict(zip(header, fields, strict=False)).get(name, MISSING) for name in more)
            yield reader.line_num, _whole_number(record_id), text, *others
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not {file_format(path)} ({one_line(error)})") from error


def _whole_number(value: Any) -> Any:
    """CSV knows no types: an id that is spelled as an integer is one, as `pandas.read_csv` sees it too."""
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20:
        return int(value) if str(int(value)) == value else value
    return value


def _read_columnar(path: Path, text_column: str, id_column: str | None, more: Sequence[str]) -> Iterator[Record]:
    if file_format(path) == ".parquet":
        with pq.ParquetFile(path) as file:
            columns = [name for name in (text_column, id_column, *more) if name in file.schema_arrow.names]
            batches = file.iter_batches(RECORDS_PER_READ, columns=columns)
            yield from _records_of_tables(batches, file.schema_arrow.names, str(path), text_column, id_column, more)
        return
    with pa.memory_map(str(path)) as source:
        reader = _open_arrow(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if _is_ipc_file(reader) else reader
        yield from _records_of_tables(batches, reader.schema.names, str(path), text_column, id_column, more)


def _open_arrow(source: pa.MemoryMappedFile) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    """Opens either form of Arrow IPC: `datasets` writes streams, `pyarrow.feather` writes files."""
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _is_ipc_file(reader: Any) -> bool:
    return isinstance(reader, pa.RecordBatchFileReader)


def _records_of_tables(
    tables: Any, names: list[str], source: str, text_column: str, id_column: str | None, more: Sequence[str]
) -> Iterator[Record]:
    _check_columns(source, names, text_column, id_column)
    row = 0
    for table in tables:
        columns = [
            _python_values(table.column(name), source, row) if name in names else [MISSING] * table.num_rows
            for name in (id_column, text_column, *more)
        ]
        for fields in zip(*columns, strict=True):
            yield row, *fields
            row += 1


def _python_values(column: Any, source: str, row: int) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 in the {len(column)} rows from row {row} on") from error
    except (ValueError, OverflowError) as error:  # a date that Python's own types cannot hold
        raise InputError(
            f"{source}: the {len(column)} rows from row {row} on cannot be read ({one_line(error)})"
        ) from error
    return values


def _check_columns(source: str, names: Sequence[str | None], text_column: str, id_column: str | None) -> None:
    if text_column not in names:
        raise _missing_column(source, text_column, [str(name) for name in names])
    for name in (text_column, id_column):
        if names.count(name) > 1:
            raise InputError(f"{source}: {names.count(name)} columns are called {name!r}; allowed: one")


def _missing_column(source: str, column: str, found: list[str]) -> InputError:
    shown = ", ".join(found[:20]) or "none"
    return InputError(f"{source}: no column {column!r}; columns found: {shown} (set data.text_column)")
