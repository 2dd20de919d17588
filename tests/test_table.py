"""Text tables: alignment, and texts that would break a line or steer a terminal."""

from __future__ import annotations

import csv
import unicodedata
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from memvec.errors import on_one_line
from memvec.table import aligned, as_json, write_csv


def columns_of(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in line)


def test_cells_are_aligned_by_their_width_on_a_terminal() -> None:
    lines = aligned([("n", "text", "end"), ("10", "喝茶", "x"), ("7", "tea", "y")], left=(1,))
    assert lines == [" n  text  end", "10  喝茶    x", " 7  tea     y"]
    assert len({columns_of(line) for line in lines}) == 1


def test_a_text_takes_one_line_and_steers_no_terminal() -> None:
    shown = on_one_line("a\nb\x1b[2Jc\u2028d\u202ee\u200bf 喝茶 😺")
    assert shown == "a\\nb\\x1b[2Jc\\u2028d\\u202ee\\u200bf 喝茶 😺"
    assert shown.isprintable()


def test_a_cell_steers_no_terminal_and_keeps_its_width() -> None:
    lines = aligned([("id", "text"), ("a\x1b[2J", "b\nmemvec: all good"), ("cc", "d")], left=(0, 1))
    assert lines == ["id        text", "a\\x1b[2J  b\\nmemvec: all good", "cc        d"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "＝1", "a\n=1"])
def test_no_text_of_a_csv_file_is_a_formula(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{text: text, "number": -1, "none": None}])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        header, cells = csv.reader(stream)
    for cell in (header[0], cells[0]):
        assert not cell.lstrip().startswith(tuple("=+-@＝\t\r"))
        assert cell.isprintable()
    assert cells[1:] == ["-1", ""]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (datetime(2024, 5, 1, 10, tzinfo=UTC), "2024-05-01T10:00:00+00:00"),
        (date(2024, 5, 1), "2024-05-01"),
        (Decimal("1.50"), "1.50"),
        (float("nan"), None),
        ([{"a": float("inf"), "b": [True, 2, None, "x"]}], [{"a": None, "b": [True, 2, None, "x"]}]),
    ],
)
def test_values_of_columns_become_what_json_has(value: Any, plain: Any) -> None:
    assert as_json(value) == plain
