"""Reads the rows of input files, whatever their format, as (row, id, text) just as they stand there.

In: one file (`memvec.data.formats.files.SUFFIXES`, the text formats also compressed) or a loaded `datasets.Dataset`.
Out: an iterator of `(row, id, text)`, and behind them the fields of further columns that were asked for.

How: the text formats are read a line or an item at a time with Python's own parsers, the columnar ones a record batch
at a time with pyarrow. Why not `datasets.load_dataset` for all: its JSON and CSV readers guess types a block at a time
(one integer among the texts changes every string of that block, `NA` becomes null, dates become timestamps), and
a row they cannot read ends the job. Here a bad row stays one row, and `memvec.data.dataset` decides about it.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from memvec.data.formats import columnar
from memvec.data.formats.delimited import read_csv, read_header, read_txt
from memvec.data.formats.fields import Record, Wanted
from memvec.data.formats.files import TEXT_FORMATS, TextFormat, check_regular, file_format
from memvec.data.formats.json_rows import read_first_names, read_json
from memvec.errors import InputError, one_line


def read_file(
    path: Path,
    *,
    text_column: str,
    id_column: str | None,
    more: Sequence[str] = (),
    text_format: TextFormat | None = None,
) -> Iterator[Record]:
    """Yields the rows of one file.

    Args:
        path: An existing file of one of our formats.
        text_column: Name of the field with the text. A `.txt` file has none: each line is a text.
        id_column: Name of the field with the id, or None where rows have none.
        more: Names of further fields, which a row need not have.
        text_format: How a text file is read where it does not say it itself.

    Yields:
        `(row, id, text, *more)`: row is a line number from 1 (text formats; the last line of a CSV record of several)
        or a row number from 0 (columnar formats and JSON arrays); the others are what the file holds, of whatever type,
        or `MISSING`; text may be `Malformed`.

    Raises:
        InputError: The file is empty, cannot be read, or no row of it has the text column.
    """
    wanted, text_format = Wanted(text_column, id_column, more), text_format or TextFormat()
    kind = file_format(path)
    try:
        check_regular(path)
        if path.stat().st_size == 0:
            raise InputError(path, found="the file is empty")
        if kind in (".csv", ".tsv"):
            yield from read_csv(path, wanted, text_format, is_tsv=kind == ".tsv")
        elif kind == ".txt":
            yield from read_txt(path, wanted, text_format)
        elif kind == ".parquet":
            yield from columnar.read_parquet(path, wanted)
        elif kind == ".arrow":
            yield from columnar.read_arrow(path, wanted)
        else:
            yield from read_json(path, wanted, text_format)
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start} of what was being read"
        raise InputError(path, found=f"not {error.encoding.upper()} ({where})") from error
    except MemoryError as error:
        raise InputError(path, found="cannot be read: what it unpacks to does not fit into memory") from error
    except (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise InputError(path, found=f"cannot be read: {one_line(error)}") from error


def read_dataset(
    dataset: Dataset, *, name: str, text_column: str, id_column: str | None, more: Sequence[str] = ()
) -> Iterator[Record]:
    """Yields the rows of a loaded dataset, as `read_file` does; `name` stands for it in messages."""
    try:
        yield from columnar.read_dataset(dataset, name=name, wanted=Wanted(text_column, id_column, more))
    except (OSError, pa.ArrowException) as error:
        raise InputError(name, found=f"cannot be read: {one_line(error)}") from error


def column_types(content: Path | Dataset, names: Sequence[str]) -> dict[str, pa.DataType]:
    """Returns the types that a file or dataset declares for fields, by their names; text formats declare none."""
    if isinstance(content, Path) and file_format(content) in TEXT_FORMATS:
        return {}
    return columnar.column_types(columnar.read_schema(content), names)


def column_names(content: Path | Dataset, *, text_column: str, text_format: TextFormat) -> list[str]:
    """Returns the names of the columns that a file or dataset has; of JSON, those of its first row."""
    kind = file_format(content) if isinstance(content, Path) else None
    if not isinstance(content, Path) or kind not in TEXT_FORMATS:
        return list(columnar.names_of(columnar.read_schema(content)))
    if kind in (".csv", ".tsv"):
        return read_header(content, text_column, text_format, is_tsv=kind == ".tsv")
    return [] if kind == ".txt" else read_first_names(content, text_column, text_format)
