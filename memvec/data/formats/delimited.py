"""CSV, TSV and plain text: a record, or a line, a row.

In: a `.csv .tsv .txt` file. Out: its records. CSV knows no types: an id that is spelled as an integer is one.

How a CSV's delimiter is found: the first records are read with each candidate, quoted fields respected. One that takes
the header apart, and every record into as many fields, is it. A file for which the guess stays open is refused.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memvec.data.formats.fields import MISSING, Malformed, Record, Wanted, check_columns, missing_column
from memvec.data.formats.files import LONGEST, TextFormat, decoded_lines
from memvec.errors import InputError, one_line

CANDIDATES = (",", ";", "\t", "|")
LINES_TO_GUESS = 1_000
CHARACTERS_TO_GUESS = 2**20

csv.field_size_limit(LONGEST)  # a memory text may be longer than the csv module's default 131,072 characters


def read_txt(path: Path, wanted: Wanted, text_format: TextFormat) -> Iterator[Record]:
    """Yields the lines of a file as texts."""
    for number, line in decoded_lines(path, text_format):
        yield number, MISSING, line.rstrip("\r\n"), *(MISSING for _ in wanted.more)


def read_csv(path: Path, wanted: Wanted, text_format: TextFormat, *, is_tsv: bool) -> Iterator[Record]:
    """Yields the records of a CSV or TSV file; a record of several lines has the number of its last.

    Raises:
        InputError: The header has no text column, the delimiter cannot be told, or a quoted field is broken.
    """
    delimiter = text_format.delimiter or _delimiter_of(path, wanted.text, text_format, is_tsv=is_tsv)
    lines = (line for _, line in decoded_lines(path, text_format))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if wanted.text not in header:
            raise missing_column(str(path), wanted.text, header)
        check_columns(str(path), header, wanted)
        text_at = header.index(wanted.text)
        id_at = header.index(wanted.id) if wanted.id in header else None
        others_at = [header.index(name) if name in header else len(header) for name in wanted.more]
        for fields in reader:
            if not fields:
                continue  # an empty line between records
            text: Any = fields[text_at] if text_at < len(fields) else MISSING
            if len(fields) > len(header):  # most often a text with a delimiter and no quotes: not all of it is here
                text = Malformed(f"{len(fields)} fields, where the header has {len(header)} (a text without quotes?)")
            record_id = MISSING if id_at is None else fields[id_at] if id_at < len(fields) else None
            others = (fields[at] if at < min(len(fields), len(header)) else MISSING for at in others_at)
            yield reader.line_num, _whole_number(record_id), text, *others
    except csv.Error as error:
        kind = "tsv" if is_tsv else "csv"
        raise InputError(f"{path}, line {reader.line_num}", found=f"not .{kind} ({one_line(error)})") from error


def read_header(path: Path, text_column: str, text_format: TextFormat, *, is_tsv: bool) -> list[str]:
    """Returns the names of the columns of a CSV or TSV file."""
    delimiter = text_format.delimiter or _delimiter_of(path, text_column, text_format, is_tsv=is_tsv)
    return next(csv.reader((line for _, line in decoded_lines(path, text_format)), delimiter=delimiter), [])


def _whole_number(value: Any) -> Any:
    """Returns an id that is spelled as an integer as one, as `pandas.read_csv` sees it too."""
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20:
        return int(value) if str(int(value)) == value else value
    return value


@dataclass(frozen=True)
class _Reading:
    """The first records as one delimiter takes them apart.

    Args:
        header: The first record.
        alike: Of the others, the share with as many fields as the header; 1.0 where there are none.
    """

    header: list[str]
    alike: float

    @classmethod
    def of(cls, lines: list[str], delimiter: str, *, is_whole: bool) -> _Reading:
        records: list[list[str]] = []
        try:
            records += (record for record in csv.reader(lines, delimiter=delimiter, strict=True) if record)
            broken = 0
        except csv.Error:  # at the sample's end a quoted field may be cut through; elsewhere it speaks against this one
            broken = int(is_whole)
        header, *rows = records or [[]]
        alike = sum(len(row) == len(header) for row in rows)
        return cls(header, alike / max(1, len(rows) + broken) if rows or broken else 1.0)

    @property
    def splits(self) -> bool:
        return len(self.header) > 1


def _delimiter_of(path: Path, text_column: str, text_format: TextFormat, *, is_tsv: bool) -> str:
    """Returns the delimiter that a file's first records have.

    Raises:
        InputError: More than one would do, or a TSV file has another.
    """
    lines: list[str] = []
    characters = 0
    for _, line in decoded_lines(path, text_format):
        if len(lines) == LINES_TO_GUESS or characters > CHARACTERS_TO_GUESS:
            is_whole = False
            break
        lines.append(line)
        characters += len(line)
    else:
        is_whole = True
    readings = {delimiter: _Reading.of(lines, delimiter, is_whole=is_whole) for delimiter in CANDIDATES}
    splitting = [delimiter for delimiter in CANDIDATES if readings[delimiter].splits]
    consistent = [delimiter for delimiter in splitting if readings[delimiter].alike == 1.0]
    if is_tsv:
        if consistent and "\t" not in splitting:
            advice = "set data.delimiter to what it is (tab, if one column is meant)"
            raise InputError(path, found=f"no tab in its header, which {consistent[0]!r} takes apart", advice=advice)
        return "\t"
    possible = consistent or splitting or [","]
    named = [delimiter for delimiter in possible if text_column in readings[delimiter].header] or possible
    if len(named) > 1 and text_column in readings[named[0]].header:
        found = f"its delimiter may be {' or '.join(map(repr, named))}"
        raise InputError(path, found=found, advice="set data.delimiter")
    return max(named, key=lambda delimiter: (readings[delimiter].alike, -CANDIDATES.index(delimiter)))
