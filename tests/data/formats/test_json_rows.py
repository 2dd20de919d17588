"""JSON in its three shapes, item by item and within bounds; fields within objects."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

import memvec.data.formats.json_rows as json_module
from memvec.data.formats.fields import MISSING
from memvec.data.reader import read_file
from memvec.errors import InputError
from tests.helpers.input_reader import input_reader
from tests.helpers.refusals import refused

ROWS = [{"id": "a", "text": "likes tea"}, {"id": "b", "text": "养了一只猫"}]
EXPECTED = [("a", "likes tea"), ("b", "养了一只猫")]


def read(path: Path, text_column: str = "text", id_column: str | None = "id") -> list[Any]:
    return list(read_file(path, text_column=text_column, id_column=id_column))


def fields(path: Path, text_column: str = "text", id_column: str | None = "id") -> list[Any]:
    return [record[1:] for record in read(path, text_column, id_column)]


# --- an object that wraps the list


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("more", [{}, {"version": 1, "tags": ["x"], "empty": [], "info": {"n": 2}}])
def test_an_object_that_wraps_the_rows_is_read(indent: int | None, name: str, more: Any, tmp_path: Path) -> None:
    content = json.dumps({**more, "data": ROWS}, indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read(tmp_path / name) == [(number, *found) for number, found in enumerate(EXPECTED)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_the_only_line_of_json_lines_is_a_row_itself(name: str, tmp_path: Path) -> None:
    """Its lists are of what the row has besides; their texts are other texts."""
    content = json.dumps({"id": "7", "memory": "likes tea", "sources": [{"text": "one"}, {"text": "two"}]}).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with refused(InputError, name, found="no column 'text'; columns found: id, memory, sources"):
        read(tmp_path / name)
    assert read(tmp_path / name, "memory") == [(1, "7", "likes tea")]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_with_several_lists_is_refused(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS}, indent=indent), encoding="utf-8")
    with refused(InputError, "a.json", found="several lists of objects: train, test", allowed="one"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("value", [{"a": 1}, {"data": []}, {"data": ["a"]}, {"data": [{"text": "a"}, 1]}, {"data": {}}])
def test_an_object_without_rows_names_its_fields(value: Any, tmp_path: Path) -> None:
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=indent), encoding="utf-8")
        with refused(InputError, "a.json", found=f"no column 'text'; columns found: {next(iter(value))}"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_row_that_holds_a_list_is_that_row(indent: int | None, tmp_path: Path) -> None:
    row = {"id": "c", "text": "one", "parts": [{"text": "two"}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=indent), encoding="utf-8")
    assert fields(tmp_path / "a.json") == [("c", "one")]
    assert fields(tmp_path / "a.json", "parts", None) == [(MISSING, [{"text": "two"}])]


def test_of_several_lines_none_is_unwrapped(tmp_path: Path) -> None:
    line = json.dumps({"data": ROWS})
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    with refused(InputError, "a.jsonl", found="no column 'text'; columns found: data"):
        read(tmp_path / "a.jsonl")


def test_a_broken_object_over_lines_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "data": [\n  {"text": "a"},\n  {"text": b}\n ]\n}\n', encoding="utf-8")
    with refused(InputError, "a.json, line 4", found="not JSON (Expecting value at column 12)"):
        read(tmp_path / "a.json")


# --- fields within objects


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"memory": {"text": "a", "id": 1}}, (1, "a")),
        ({"memory.text": "literal", "memory": {"text": "a", "id": 1}}, (1, "literal")),
        ({"memory": {"text": None}}, (MISSING, None)),
        ({"memory": None}, (None, None)),
        ({"memory": "a"}, (MISSING, MISSING)),
        ({"memory": ["text"]}, (MISSING, MISSING)),
        ({"other": 1}, (MISSING, MISSING)),
    ],
)
def test_a_name_with_dots_is_a_field_within_an_object(row: Any, found: Any, tmp_path: Path) -> None:
    good = {"memory": {"text": "x", "id": 0}}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n", encoding="utf-8")
    assert fields(tmp_path / "a.jsonl", "memory.text", "memory.id") == [(0, "x"), found]


def test_a_field_lies_as_deep_as_its_name_says(tmp_path: Path) -> None:
    row = {"a": {"b.c": {"d": "deep"}}, "a.b": {"x": 1}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert fields(tmp_path / "a.jsonl", "a.b.c.d", "a.b.x") == [(1, "deep")]
    with refused(InputError, "a.jsonl", found="no column 'a.b.d'; columns found: a, a.b"):
        read(tmp_path / "a.jsonl", "a.b.d")


# --- arrays, item by item


def value_of(draw: random.Random, depth: int) -> Any:
    kind = draw.randrange(9 if depth else 6)
    if kind >= 6:
        size = draw.randrange(4)
        items = [value_of(draw, depth - 1) for _ in range(size)]
        return items if kind == 6 else {draw.choice(["a", "text", '"', "猫", "\\"]): item for item in items}
    text = "".join(
        draw.choices(['"', "\\", "[", "]", "{", "}", ",", "茶", "\n", "\u2028", "e", " "], k=draw.randrange(9))
    )
    return [text, draw.randrange(-(10**20), 10**20), draw.random() * 1e30, True, None, float("-inf")][kind]


@pytest.mark.parametrize("characters", [1, 7, 64])
def test_an_array_in_any_window_is_what_it_is_whole(
    characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_module, "CHARACTERS_PER_READ", characters)
    draw = random.Random(characters)
    for _ in range(60):
        rows = [{"text": value_of(draw, 3)} for _ in range(draw.randrange(1, 6))]
        content = json.dumps(rows, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.5)
        (tmp_path / "a.json").write_text(
            draw.choice(["", " \n"]) + content + draw.choice(["", "\n "]), encoding="utf-8"
        )
        assert [text for _, _, text in read(tmp_path / "a.json")] == [row["text"] for row in rows]


@pytest.mark.parametrize("characters", [1, 7, 2**20])
def test_a_damaged_array_is_an_error_as_in_the_standard_parser(
    characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_module, "CHARACTERS_PER_READ", characters)
    draw = random.Random(3)
    content = json.dumps([{"id": 1.5e3, "text": 'tea "\\u8336" \\', "x": [True, {}]}, {"text": "b"}], indent=1)
    for _ in range(150):
        at = draw.randrange(1, len(content))
        damaged = draw.choice(
            [content[:at], content[:at] + draw.choice('"\\[]{},:x0 \n') + content[at + draw.randrange(2) :]]
        )
        (tmp_path / "a.json").write_text(damaged, encoding="utf-8")
        try:
            expected = json.loads(damaged.rstrip())
        except json.JSONDecodeError as error:
            with pytest.raises(InputError) as caught:
                read(tmp_path / "a.json", id_column=None)
            # What the standard parser finds behind an item that is no object was said about that item.
            place = f"line {error.lineno}: not JSON ({error.msg} at column {error.colno})"
            assert place in str(caught.value) or "an object" in caught.value.allowed, damaged
            continue
        if all(isinstance(row, dict) for row in expected) and any("text" in row for row in expected):
            found = [text for _, _, text in read(tmp_path / "a.json")]
            assert found == [row.get("text", MISSING) for row in expected]


def test_the_first_rows_of_an_array_come_before_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b"}, oh', encoding="utf-8")
    rows = read_file(tmp_path / "a.json", text_column="text", id_column=None)
    assert [next(rows)[2] for _ in range(2)] == ["a", "b"]
    with refused(InputError, "a.json, line 1", found="not JSON (Expecting value at column 32)"):
        next(rows)


# --- bounds

BOMBS = {
    "line.jsonl.gz": (b'{"text": "', b"a", "line 1: longer than 128 MB"),
    "line.txt.gz": (b"", b"a", "line 1: longer than 128 MB"),
    "field.csv.gz": (b'id,text\n1,"', b"a" * 1023 + b"\n", "field larger than field limit"),
    "header.csv.gz": (b"", b"a", "line 1: longer than 128 MB"),
    "item.json.gz": (b'[{"text": "', b"a", "item: longer than 128 MB"),
    "spaces.json.gz": (b"[", b" ", "longer than 128 MB|not JSON"),
    "wrapped.json.gz": (
        b'{\n"data": [',
        b'{"text": "a"},\n',
        "one object over several lines: longer than 128 MB",
    ),
    "wide.txt.gz": (b"\xff\xfe", b"a\x00", "line 1: longer than 128 MB"),
}


@pytest.mark.slow
def test_what_small_files_unpack_to_is_read_within_bounds(tmp_path: Path) -> None:
    """2 GB in 2 MB each."""
    blocks: dict[bytes, bytes] = {}
    with input_reader() as reader:
        for name, (start, filling, message) in BOMBS.items():
            if filling not in blocks:
                blocks[filling] = gzip.compress(filling * (64 * 2**20 // len(filling)), 1)
            (tmp_path / name).write_bytes(gzip.compress(start) + blocks[filling] * 32)
            answer = reader.read(tmp_path / name, ["text", "id"])
            assert re.search(message, answer.get("error", "")), (name, answer)
            assert reader.peak < 1500, name
