"""Rows of cells as aligned lines, and as CSV; values of columns as JSON."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from memvec.errors import on_one_line
from memvec.files import atomic_file

# What a spreadsheet takes for the beginning of a formula, which may fetch an address or run a program.
FORMULA = tuple("=+-@＝＋－＠")


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Returns rows as lines, their cells aligned on the right.

    Args:
        rows: The header first, all of the same number of cells.
        left: Which columns are aligned on the left.
    """
    rows = [[on_one_line(cell) for cell in row] for row in rows]
    columns = range(len(rows[0]))
    widths = [max(_width(row[column]) for row in rows) for column in columns]
    lines = []
    for row in rows:
        gaps = [" " * (widths[column] - _width(row[column])) for column in columns]
        cells = [row[c] + gaps[c] if c in left else gaps[c] + row[c] for c in columns]
        lines.append("  ".join(cells).rstrip())
    return lines


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with equal keys, which are the header; a text that a spreadsheet would compute is quoted for it."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([_as_cell(name) for name in rows[0]])
        writer.writerows([_as_cell(value) for value in row.values()] for row in rows)


def as_json(value: Any) -> Any:
    """Returns a value of a column as JSON has it: dates in ISO 8601, NaN as null, what JSON has no type for as text."""
    if isinstance(value, Mapping):
        return {name: as_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_json(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _as_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = on_one_line(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def _width(text: str) -> int:
    """Returns how many columns of a terminal a text takes: East Asian wide characters take two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
