"""Every input format is read as it stands: rows, ids and texts unchanged, and every fault named by its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvec.data.formats.fields import MISSING, Malformed
from memvec.data.formats.files import file_format
from memvec.data.reader import read_dataset, read_file
from memvec.errors import InputError
from tests.helpers.refusals import refused

# What other readers take for a date, a number, a null or the end of a row.
AWKWARD = [
    "2021-05-04",
    "2021-05-04T10:00:00Z",
    "NA",
    "null",
    "nan",
    "None",
    "true",
    "7",
    "1e5",
    " spaces ",
    'a "quoted" word, and a comma',
    '"',
    "two\nlines",
    "two\r\nlines",
    "a\rb",
    "a\ttab",
    "a\x00b",
    "line\u2028separator\x85\x0b",
    "\ufeffin front",
    "养了一只猫 😺",
    "",
]
anything = st.text(st.characters(codec="utf-8"), max_size=30)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, *, text_column: str = "text", id_column: str | None = "id") -> list[tuple[int, Any, Any]]:
    return list(read_file(path, text_column=text_column, id_column=id_column))


def save_jsonl(path: Path, table: dict[str, list[Any]]) -> None:
    rows = (dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")


def save_json_array(path: Path, table: dict[str, list[Any]]) -> None:
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def save_csv(path: Path, table: dict[str, list[Any]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([list(table), *zip(*table.values(), strict=True)])


def save_arrow_stream(path: Path, table: dict[str, Any]) -> None:
    content = pa.table(table)
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=7)


def save_arrow_file(path: Path, table: dict[str, Any]) -> None:
    content = pa.table(table)
    with pa.ipc.new_file(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=7)


def save_parquet(path: Path, table: dict[str, Any]) -> None:
    pq.write_table(pa.table(table), path, row_group_size=7)


SAVERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "a.jsonl": save_jsonl,
    "lines.json": save_jsonl,
    "array.json": save_json_array,
    "a.csv": save_csv,
    "a.tsv": lambda path, table: save_csv(path, table, "\t"),
    "a.parquet": save_parquet,
    "stream.arrow": save_arrow_stream,
    "file.arrow": save_arrow_file,
}
COLUMNAR = ["a.parquet", "stream.arrow", "file.arrow"]


# --- what is read is what stands there


@pytest.mark.parametrize("name", SAVERS)
def test_texts_and_ids_come_as_they_stand(name: str, tmp_path: Path) -> None:
    ids = [f"m/{number}" for number in range(len(AWKWARD))]
    SAVERS[name](tmp_path / name, {"extra": [1] * len(ids), "text": AWKWARD, "id": ids})
    assert [(found, text) for _, found, text in read(tmp_path / name)] == list(zip(ids, AWKWARD, strict=True))


@pytest.mark.parametrize("name", SAVERS)
@shared_folder
@given(texts=st.lists(anything, min_size=1, max_size=20))
def test_any_text_survives(name: str, tmp_path: Path, texts: list[str]) -> None:
    SAVERS[name](tmp_path / name, {"text": texts})
    assert [(found, text) for _, found, text in read(tmp_path / name)] == [(MISSING, text) for text in texts]


@pytest.mark.parametrize("name", SAVERS)
def test_integer_ids_are_integers(name: str, tmp_path: Path) -> None:
    ids = [0, -7, 2**62, 12]
    SAVERS[name](tmp_path / name, {"id": ids, "text": ["a", "b", "c", "d"]})
    found = [found for _, found, _ in read(tmp_path / name)]
    assert found == ids
    assert {type(one) for one in found} == {int}


@pytest.mark.parametrize("id_column", [None, "key"])
@pytest.mark.parametrize("name", SAVERS)
def test_rows_without_the_id_column_miss_their_id(name: str, id_column: str | None, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"id": [1, 2], "text": ["a", "b"]})
    assert [found for _, found, _ in read(tmp_path / name, id_column=id_column)] == [MISSING, MISSING]


@pytest.mark.parametrize("name", SAVERS)
def test_columns_may_have_other_names(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"text": ["x"], "memo.text": ["a"], "记忆": ["b"]})
    assert [row[1:] for row in read(tmp_path / name, text_column="memo.text", id_column="记忆")] == [("b", "a")]
    assert [row[1:] for row in read(tmp_path / name, text_column="text", id_column="text")] == [("x", "x")]


def test_a_row_is_a_line_of_text_or_a_position(tmp_path: Path) -> None:
    table = {"text": [str(number) for number in range(20)]}
    for name, save in SAVERS.items():
        save(tmp_path / name, table)
    rows = {name: [row for row, _, _ in read(tmp_path / name)] for name in SAVERS}
    assert rows["a.jsonl"] == rows["lines.json"] == list(range(1, 21))
    assert rows["a.csv"] == rows["a.tsv"] == list(range(2, 22))
    assert all(rows[name] == list(range(20)) for name in ["array.json", *COLUMNAR])


def test_the_lines_of_a_text_file_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes('\ufeffone\r\n\n two \u2028 \x0b\x85\nthree, "3"'.encode())
    assert read(path) == [
        (1, MISSING, "one"),
        (2, MISSING, ""),
        (3, MISSING, " two \u2028 \x0b\x85"),
        (4, MISSING, 'three, "3"'),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "a.csv", "a.tsv"])
def test_compressed_text_formats_read_the_same(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"id": list(range(len(AWKWARD))), "text": AWKWARD})
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(packed) == read(tmp_path / name)


def test_suffixes_say_the_format() -> None:
    known = ["a.jsonl", "A.JSON", "a.b.csv", "a.TSV", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz", "a.txt.GZ"]
    assert [file_format(Path(name)) for name in known] == [
        ".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".jsonl", ".txt",
    ]  # fmt: skip
    assert [file_format(Path(name)) for name in ["a.md", "a", ".jsonl", "a.gz", "a.parquet.gz", "a.jsonl.zip"]] == [
        None
    ] * 6


# --- JSON


def test_blank_lines_between_json_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}\n\n{"text": "c"}')
    assert read(path) == [(1, MISSING, "a"), (4, MISSING, "b"), (6, MISSING, "c")]


def test_a_json_array_may_have_a_byte_order_mark_and_white_space(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf \n\t[{"text": "a"},\n {"id": 5}]')
    assert read(path) == [(0, MISSING, "a"), (1, 5, MISSING)]


def test_values_of_any_type_are_handed_on(tmp_path: Path) -> None:
    values = [None, 1, 1.5, True, ["a"], {"a": 1}, "ok", 10**400]
    save_jsonl(tmp_path / "a.jsonl", {"id": values, "text": values})
    assert [row[1:] for row in read(tmp_path / "a.jsonl")] == [(value, value) for value in values]


def test_an_integer_among_texts_changes_no_other_row(tmp_path: Path) -> None:
    """`datasets` and pyarrow put quotes around every string of such a block."""
    texts = [1, *["plain"] * 30_000, 2, *["2021-05-04"] * 10]
    save_jsonl(tmp_path / "a.jsonl", {"text": texts})
    assert [text for _, _, text in read(tmp_path / "a.jsonl")] == texts


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"text": "b"', "not JSON"),
        ("{'text': 'b'}", "not JSON"),
        ('{"text": "b"} {"text": "c"}', "not JSON (Extra data"),
        ('{"text": "a\tb"}', "not JSON (Invalid control character"),
        ("[" * 100_000, "JSON that cannot be read"),
        ('{"text": "b", "id": ' + "7" * 5000 + "}", "JSON that cannot be read"),
    ],
)
def test_a_line_that_is_not_json_is_named(line: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n\n{line}\n{{"text": "d"}}\n', encoding="utf-8")
    with refused(InputError, f"{path}, line 3", found=re.compile(f"^{re.escape(fault)}")) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_broken_json_array_is_named_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text" "b"}]', encoding="utf-8")
    with refused(InputError, f"{path}, line 2", found=re.compile(r"^not JSON \(.* at column 10\)")):
        read(path)


@pytest.mark.parametrize(("row", "found"), [('"a text"', "str"), ("17", "int"), ("null", "NoneType"), ("true", "bool")])
@pytest.mark.parametrize("array", [False, True])
def test_a_json_row_that_is_no_object_is_named(row: str, found: str, array: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{{"text": "a"}}, {row}]' if array else f'{{"text": "a"}}\n{row}\n', encoding="utf-8")
    with refused(InputError, f"{path}, row {1 if array else 2}", found=f"found {found}", allowed="an object"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "array.json"])
def test_a_text_column_that_no_row_has_lists_the_others(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"memory": ["a", "b"], "key": [1, 2]})
    found = "no column 'text'; columns found: key, memory"
    with refused(InputError, name, found=found, advice="set data.text_column"):
        read(tmp_path / name)


def test_a_text_column_that_only_some_rows_have_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n' * 30 + '{"id": 2, "text": "a"}\n{"id": 3}\n', encoding="utf-8")
    assert [text for _, _, text in read(path)] == [*[MISSING] * 30, "a", MISSING]


# --- CSV


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text\r\n"
        b'1,"He said ""hi"", and\r\nleft"\r\n'
        b"2,plain 'text'\r\n"
        b"\r\n"
        b'"x3",\xe4\xb8\xad\xe6\x96\x87\r\n'
        b"4,\r\n"
    )
    assert read(path) == [(3, 1, 'He said "hi", and\r\nleft'), (4, 2, "plain 'text'"), (6, "x3", "中文"), (7, 4, "")]


@pytest.mark.parametrize("written", ["007", "-0", "+1", "1.0", "1e3", " 1", "٣", "1_0", "9" * 30, "m/1", ""])
def test_a_csv_id_not_spelled_as_an_integer_stays_a_string(written: str, tmp_path: Path) -> None:
    save_csv(tmp_path / "a.csv", {"id": [written], "text": ["a"]})
    assert read(tmp_path / "a.csv") == [(2, written, "a")]


@pytest.mark.parametrize("number", [0, 7, -5, 2**63 - 1, 9_999_999_999_999_999_999])
def test_a_csv_id_spelled_as_an_integer_is_one(number: int, tmp_path: Path) -> None:
    save_csv(tmp_path / "a.csv", {"id": [number], "text": [number]})
    assert read(tmp_path / "a.csv") == [(2, number, str(number))]


def test_a_short_csv_row_misses_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,id\na,1\nb\n", encoding="utf-8")
    assert read(path) == [(2, 1, "a"), (3, None, "b")]
    path.write_text("id,text\n1,a\n2\n", encoding="utf-8")
    assert read(path) == [(2, 1, "a"), (3, 2, MISSING)]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_text_that_its_own_delimiter_cut_in_two_is_not_taken(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.csv" if delimiter == "," else "a.tsv")
    path.write_text(f"id,text\n1,tea{delimiter} no coffee\n2,b\n".replace(",", delimiter), encoding="utf-8")
    first, second = read(path)
    assert first[:2] == (2, 1)
    assert first[2] == Malformed("3 fields, where the header has 2 (a text without quotes?)")
    assert second == (3, 2, "b")


@pytest.mark.parametrize(
    ("content", "line"),
    [('id,text\n1,"a" b\n', 2), ('id,text\n1,a\n2,"never closed\n3,c\n', 4), ("id,text\n1,a\rb\n", 2)],
)
def test_a_csv_row_that_cannot_be_read_is_named(content: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    with refused(InputError, f"{path}, line {line}", found="not .csv ("):
        read(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_csv_without_the_text_column_lists_the_others(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"key": [1], "memory": ["a"]})
    with refused(InputError, found="no column 'text'; columns found: key, memory"):
        read(tmp_path / name)


def test_a_header_alone_is_a_file_without_rows(tmp_path: Path) -> None:
    save_csv(tmp_path / "a.csv", {"id": [], "text": []})
    assert read(tmp_path / "a.csv") == []


# --- Parquet and Arrow


@pytest.mark.parametrize("name", COLUMNAR)
@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "a"]).dictionary_encode(),
        pa.array(["a", None, "a"], pa.large_string()),
        pa.array(["a", None, "a"], pa.string_view()),
    ],
    ids=["dictionary", "large_string", "string_view"],
)
def test_columns_of_every_string_type_are_read(name: str, column: pa.Array, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"text": column, "id": pa.array([1, 2**63, None], pa.uint64())})
    assert read(tmp_path / name) == [(0, 1, "a"), (1, 2**63, None), (2, None, "a")]


@pytest.mark.parametrize("name", COLUMNAR)
@pytest.mark.parametrize(
    ("column", "kinds"),
    [
        (pa.nulls(2), ["NoneType", "NoneType"]),
        (pa.array([b"a", None]), ["bytes", "NoneType"]),
        (pa.array([["a"], None]), ["list", "NoneType"]),
        (pa.array([{"a": 1}, None]), ["dict", "NoneType"]),
        (pa.array([1, None]), ["int", "NoneType"]),
    ],
    ids=["null", "binary", "list", "struct", "integer"],
)
def test_other_columns_are_handed_on(name: str, column: pa.Array, kinds: list[str], tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"text": column, "id": column})
    found = read(tmp_path / name)
    assert [type(text).__name__ for _, _, text in found] == kinds
    assert [type(one).__name__ for _, one, _ in found] == kinds


@pytest.mark.parametrize("name", COLUMNAR)
def test_a_columnar_file_without_texts_lists_its_columns(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"memory": ["a"], "key": [1]})
    with refused(InputError, found="no column 'text'; columns found: memory, key"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", *COLUMNAR])
@pytest.mark.parametrize("twice", ["text", "id"])
def test_a_column_that_is_there_twice_is_an_error(name: str, twice: str, tmp_path: Path) -> None:
    columns = ["id", "text", twice]
    if name == "a.csv":
        (tmp_path / name).write_text(",".join(columns) + "\n1,2,3\n", encoding="utf-8")
    else:
        SAVERS[name](tmp_path / name, pa.Table.from_arrays([pa.array(["a"])] * 3, names=columns))  # type: ignore[arg-type]
    with refused(InputError, found=f"2 columns are called '{twice}'", allowed="one"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", COLUMNAR)
def test_a_columnar_file_may_be_without_rows(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, {"text": pa.array([], pa.string())})
    assert read(tmp_path / name) == []


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow"])
def test_strings_that_are_not_utf8_are_named_by_their_rows(name: str, tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff\xfe"]).view(pa.string())
    SAVERS[name](tmp_path / name, {"text": pa.chunked_array([pa.array(["a"] * 7), bad])})
    with refused(InputError, found="not UTF-8 in the 2 rows from row 7 on"):
        read(tmp_path / name)


def test_a_date_beyond_all_calendars_is_an_input_error(tmp_path: Path) -> None:
    save_arrow_stream(tmp_path / "a.arrow", {"text": ["a"], "id": pa.array([2**60], pa.timestamp("s"))})
    with refused(InputError, "a.arrow", found="1 rows from row 0 on cannot be read"):
        read(tmp_path / "a.arrow")


def test_a_loaded_dataset_reads_like_its_file(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"text": AWKWARD, "id": list(range(len(AWKWARD))), "extra": AWKWARD})
    found = list(read_dataset(dataset, name="here", text_column="text", id_column="id"))
    assert found == [(number, number, text) for number, text in enumerate(AWKWARD)]
    backwards = list(read_dataset(dataset.select([2, 0]), name="here", text_column="text", id_column=None))
    assert backwards == [(0, MISSING, AWKWARD[2]), (1, MISSING, AWKWARD[0])]
    with refused(InputError, "here", found="no column 'memo'; columns found: text, id, extra"):
        list(read_dataset(dataset, name="here", text_column="memo", id_column=None))


# --- files that cannot be read at all


@pytest.mark.parametrize("name", [*SAVERS, "a.txt", "a.jsonl.gz"])
def test_an_empty_file_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with refused(InputError, name, found="the file is empty"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.tsv.gz"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b" \n\n"])
def test_a_file_of_nothing_but_white_space_has_no_text_column(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content))
    with refused(InputError, found="no column 'text'; columns found: "):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz"])
def test_bytes_that_are_not_utf8_are_named_by_their_line(name: str, tmp_path: Path) -> None:
    content = b'{"text": "a"}\ntext\n{"text": "\xff"}\n' if "json" in name else b"text\na\n\xe9t\xe9\n"
    content = content.replace(b"\ntext", b"\n") if "json" in name else content
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with refused(InputError, f"{name}, line 3", found=re.compile(r"not UTF-8 \(invalid .* at byte \d+\)")):
        read(tmp_path / name)


def test_a_json_array_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"text": "\xff"}]')
    with refused(InputError, "a.json", found="not UTF-8 (invalid start byte at byte 11"):
        read(tmp_path / "a.json")


def damaged(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        packed = bytearray(gzip.compress(content * 500))
        packed[40:60] = b"\xff" * 20
        return bytes(packed)
    return content[: len(content) // 2]


@pytest.mark.parametrize("name", [*COLUMNAR, "a.jsonl.gz"])
@pytest.mark.parametrize("kind", ["damaged", "something else"])
def test_a_damaged_file_is_an_input_error_of_one_line(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name in COLUMNAR:
        SAVERS[name](path, {"text": [f"text {number}" for number in range(200)]})
        path.write_bytes(damaged(path.read_bytes(), name) if kind == "damaged" else b"this is something else entirely")
    else:
        path.write_bytes(damaged(b'{"text": "abc"}\n', name) if kind == "damaged" else b"this is something else")
    with refused(InputError, path, found=re.compile(r"^cannot be read: \S")) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_compressed_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "abc"}\n' * 500)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) - 12])
    with refused(InputError, "a.jsonl.gz", found="cannot be read: "):
        read(tmp_path / "a.jsonl.gz")


def test_a_folder_in_a_files_place_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with refused(InputError, "a.jsonl", found=re.compile("cannot be read: .*[Ii]s a directory")):
        read(tmp_path / "a.jsonl")


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with refused(InputError, "a.jsonl", found=re.compile(r"cannot be read: .*No such file")):
        read(tmp_path / "a.jsonl")


# --- size


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAVERS, "a.txt"])
def test_a_text_of_ten_megabytes_is_read(name: str, tmp_path: Path) -> None:
    text = 'She said "tea", 茶. ' * 500_000
    if name == "a.txt":
        (tmp_path / name).write_text(f"{text}\nb\n", encoding="utf-8")
    else:
        SAVERS[name](tmp_path / name, {"text": [text, "b"]})
    assert [found for _, _, found in read(tmp_path / name)] == [text, "b"]


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    """A file is not read whole: its first rows are there before a fault further down is met."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 3 + "broken\n", encoding="utf-8")
    rows = read_file(path, text_column="text", id_column=None)
    assert [next(rows)[2] for _ in range(3)] == ["a"] * 3
    with refused(InputError, f"{path}, line 4"):
        next(rows)


def test_csv_agrees_with_the_standard_parser(tmp_path: Path) -> None:
    """Texts in every quoting that the csv module writes."""
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC):
        stream = io.StringIO(newline="")
        rows: Sequence[tuple[str, str]] = [(f"m{number}", text) for number, text in enumerate(AWKWARD)]
        csv.writer(stream, quoting=quoting).writerows([("id", "text"), *rows])
        (tmp_path / "a.csv").write_bytes(stream.getvalue().encode())
        assert [row[1:] for row in read(tmp_path / "a.csv")] == rows
