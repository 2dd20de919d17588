"""Text tables: alignment, and texts that would break a line or steer a terminal."""

from __future__ import annotations

import unicodedata

from memvec.errors import on_one_line
from memvec.table import aligned


def columns_of(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in line)


def test_cells_are_aligned_by_the_columns_they_take_on_a_terminal() -> None:
    lines = aligned([("n", "text", "end"), ("10", "喝茶", "x"), ("7", "tea", "y")], left=(1,))
    assert lines == [" n  text  end", "10  喝茶    x", " 7  tea     y"]
    assert len({columns_of(line) for line in lines}) == 1


def test_a_text_takes_one_line_and_steers_no_terminal() -> None:
    shown = on_one_line("a\nb\x1b[2Jc\u2028d\u202ee\u200bf 喝茶 😺")
    assert shown == "a\\nb\\x1b[2Jc\\u2028d\\u202ee\\u200bf 喝茶 😺"
    assert shown.isprintable()
