"""Rows of cells as aligned lines, and as CSV."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Returns rows as lines, their cells aligned on the right.

    Args:
        rows: The header first, all of the same number of cells.
        left: Which columns are aligned on the left.
    """
    columns = range(len(rows[0]))
    widths = [max(_width(row[column]) for row in rows) for column in columns]
    lines = []
    for row in rows:
        gaps = [" " * (widths[column] - _width(row[column])) for column in columns]
        cells = [row[c] + gaps[c] if c in left else gaps[c] + row[c] for c in columns]
        lines.append("  ".join(cells).rstrip())
    return lines


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with equal keys, which are the header."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _width(text: str) -> int:
    """Returns how many columns of a terminal a text takes: East Asian wide characters take two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
