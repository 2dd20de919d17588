"""Validation: every row is either an entry or a rejection that says where it stood and why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import memvec.data.dataset as dataset_module
from memvec.data.dataset import EntriesSummary, write_entries
from memvec.data.source import Source, find_sources
from memvec.errors import InputError
from memvec.features import ENTRY_FEATURES
from tests.helpers.refusals import refused

Entry = tuple[str, str, int, int]
Write = Callable[..., tuple[EntriesSummary, list[Entry], list[dict[str, Any]]]]


def strict_json(line: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def entries_of(path: Path) -> list[Entry]:
    dataset = Dataset.from_file(str(path))
    assert dataset.features == ENTRY_FEATURES
    return [(row["id"], row["text"], row["file"], row["row"]) for row in dataset]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the entries of paths and returns the summary, the entries and the rejections."""

    def run(*paths: Path, **options: Any) -> tuple[EntriesSummary, list[Entry], list[dict[str, Any]]]:
        entries, rejected = tmp_path / "out.entries.arrow", tmp_path / "out.rejected.jsonl"
        sources = find_sources([str(path) for path in paths])
        summary = write_entries(sources, entries_path=entries, rejected_path=rejected, **options)
        lines = rejected.read_text(encoding="utf-8").splitlines()
        return summary, entries_of(entries), [strict_json(line) for line in lines]

    return run


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines, a string as it is."""

    def save(*rows: Any, name: str = "a.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return tmp_path / name

    return save


# --- what is accepted


def test_entries_say_where_they_stood(write: Write, jsonl: Callable[..., Path]) -> None:
    one = jsonl({"id": "x", "text": "a"}, "", {"id": "y", "text": "中文"})
    other = jsonl({"id": "z", "text": " b "}, name="b.jsonl")
    summary, entries, rejected = write(other, one)
    assert entries == [("z", " b ", 0, 1), ("x", "a", 1, 1), ("y", "中文", 1, 3)]
    assert rejected == []
    assert summary == EntriesSummary(
        files=[str(other), str(one)], rows=3, rejected=0, integer_ids=False, ids="column 'id'"
    )
    assert summary.accepted == 3


@pytest.mark.parametrize("text", ["2021-05-04", "NA", "null", "nan", "None", "7", "true", " a ", "a\x00b", "\ufeffa"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_texts_stay_exactly_as_they_are(text: str, suffix: str, write: Write, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": one}) + "\n" for one in (text, "b")), encoding="utf-8")
    elif suffix == "csv":
        path.write_text(f'text\n"{text}"\nb\n', encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": [text, "b"]}), path)
    assert [row[1] for row in write(path)[1]] == [text, "b"]


def test_a_mixed_folder_is_one_input(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("id,text\nx,one\n", encoding="utf-8")
    (folder / "b.jsonl").write_text('{"id": "y", "text": "two"}\n', encoding="utf-8")
    pq.write_table(pa.table({"id": ["z"], "text": ["three"]}), folder / "sub" / "c.parquet")
    (folder / ".hidden.jsonl").write_text('{"id": "h", "text": "hidden"}\n', encoding="utf-8")
    (folder / "notes.md").write_text("no input", encoding="utf-8")
    summary, entries, _ = write(folder)
    assert entries == [("x", "one", 0, 2), ("y", "two", 1, 1), ("z", "three", 2, 0)]
    assert [Path(name).name for name in summary.files] == ["a.csv", "b.jsonl", "c.parquet"]


@pytest.mark.slow
def test_a_text_of_ten_megabytes_is_an_entry(write: Write, jsonl: Callable[..., Path]) -> None:
    text = "She likes tea, 茶. " * 600_000
    _, entries, _ = write(jsonl({"text": text}, {"text": "b"}))
    assert [row[1] for row in entries] == [text, "b"]


@pytest.mark.parametrize(("rows", "characters"), [(3, 10**9), (10**9, 40)])
def test_record_batches_are_bounded_by_rows_and_by_characters(
    rows: int, characters: int, write: Write, jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "ROWS_PER_BATCH", rows)
    monkeypatch.setattr(dataset_module, "CHARACTERS_PER_BATCH", characters)
    path = jsonl(*[{"text": f"text number {number}"} for number in range(20)])
    _, entries, _ = write(path)
    assert [row[1] for row in entries] == [f"text number {number}" for number in range(20)]
    with pa.ipc.open_stream(str(path.parent / "out.entries.arrow")) as reader:
        sizes = [batch.num_rows for batch in reader]
    assert len(sizes) > 3
    assert max(sizes) <= 4


# --- ids


@pytest.mark.parametrize(
    ("ids", "integer"),
    [
        ([3, -1, 0], True),
        ([2**63 - 1, -(2**63)], True),
        ([1, 2**63], False),
        ([1, 10**40], False),
        ([1, "a"], False),
        (["1", "2"], False),
        (["a", ""], False),
        (["01", 1], False),
    ],
)
def test_ids_are_integers_only_where_all_of_them_fit(
    ids: list[Any], integer: bool, write: Write, jsonl: Callable[..., Path]
) -> None:
    summary, entries, _ = write(jsonl(*[{"id": one, "text": "a"} for one in ids]))
    assert summary.integer_ids is integer
    assert [row[0] for row in entries] == [str(one) for one in ids if one != ""]


def test_a_rejected_row_has_no_say_in_the_type_of_ids(write: Write, jsonl: Callable[..., Path]) -> None:
    summary, _, rejected = write(jsonl({"id": 1, "text": "a"}, {"id": "b", "text": ""}))
    assert len(rejected) == 1
    assert summary.integer_ids


def test_without_ids_the_row_number_over_all_files_is_the_id(write: Write, jsonl: Callable[..., Path]) -> None:
    one, other = jsonl({"text": "a"}, {"text": ""}, {"text": "b"}), jsonl({"text": "c"}, name="b.jsonl")
    summary, entries, rejected = write(one, other)
    assert entries == [("0", "a", 0, 1), ("2", "b", 0, 3), ("3", "c", 1, 1)]
    assert (rejected[0]["id"], rejected[0]["row"]) == (None, 2)
    assert summary.integer_ids


def test_the_id_column_can_be_left_out(write: Write, jsonl: Callable[..., Path]) -> None:
    path = jsonl({"id": "x", "text": "a"}, {"id": "x", "text": "b"}, {"text": "c"})
    summary, entries, _ = write(path, id_column=None)
    assert [row[0] for row in entries] == ["0", "1", "2"]
    assert summary.ids == "row numbers"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "saved"])
@pytest.mark.parametrize("on_error", ["reject", "fail"])
def test_an_id_column_that_no_row_has_is_an_error(name: str, on_error: str, write: Write, tmp_path: Path) -> None:
    table, path = Dataset.from_dict({"id": ["x", "y"], "text": ["a", "b"]}), tmp_path / name
    savers = {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}
    savers.get(name.partition(".")[2], table.save_to_disk)(str(path))
    place, found = re.compile(rf"{name}(, row \d+)?$"), re.compile("^no (row has the id column 'key'|'key' field)")
    with refused(InputError, place, found=found) as caught:
        write(path, id_column="key", on_error=on_error)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.entries.arrow").exists()


def test_an_id_column_that_was_asked_for_may_begin_late(write: Write, jsonl: Callable[..., Path]) -> None:
    summary, entries, rejected = write(jsonl({"text": "a"}, {"key": "x", "text": "b"}), id_column="key")
    assert [row[0] for row in entries] == ["x"]
    assert [row["reason"] for row in rejected] == ["no 'key' field, which data.id_column names"]
    assert summary.ids == "column 'key'"


@pytest.mark.parametrize(("row", "ids"), [({"id": 1, "text": "a"}, "column 'id'"), ({"text": "a"}, "row numbers")])
def test_the_summary_says_where_ids_come_from(row: Any, ids: str, write: Write, jsonl: Callable[..., Path]) -> None:
    assert write(jsonl(row))[0].ids == ids


def test_other_column_names(write: Write, jsonl: Callable[..., Path]) -> None:
    path = jsonl({"key": 7, "memory": "a", "id": 1, "text": "b"}, {"key": 8, "text": "c"})
    _, entries, rejected = write(path, text_column="memory", id_column="key")
    assert entries == [("7", "a", 0, 1)]
    assert rejected[0]["reason"] == "no 'memory' field"


def test_ids_that_begin_further_down_are_an_error(write: Write, jsonl: Callable[..., Path]) -> None:
    path = jsonl({"text": "a"}, {"id": 5, "text": "b"})
    found = "has an 'id', but the first row"
    with refused(InputError, f"{path}, row 2", found=found, advice="set data.id_column=null"):
        write(path)


def test_ids_that_begin_in_a_later_file_are_an_error(write: Write, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a\nb\n", encoding="utf-8")
    with refused(InputError, "a.jsonl, row 1", found="has an 'id', but the first row of the input has none"):
        write(tmp_path / "lines.txt", jsonl({"id": 5, "text": "b"}))


def test_an_id_that_is_missing_further_down_is_a_rejection(
    write: Write, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("c\n", encoding="utf-8")
    _, entries, rejected = write(jsonl({"id": 5, "text": "a"}, {"text": "b"}), tmp_path / "lines.txt")
    assert [row[0] for row in entries] == ["5"]
    reason = "no 'id' field, which the first row of the input has"
    assert [(row["row"], row["id"], row["reason"]) for row in rejected] == [(2, None, reason), (1, None, reason)]


# --- rejections


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": 2}, "no 'text' field"),
        ({"id": 2, "text": None}, "'text' is null"),
        ({"id": 2, "text": 7}, "'text' is of type int, not a string"),
        ({"id": 2, "text": True}, "'text' is of type bool, not a string"),
        ({"id": 2, "text": ["a"]}, "'text' is of type list, not a string"),
        ({"id": 2, "text": {"a": "b"}}, "'text' is of type dict, not a string"),
        ({"id": 2, "text": ""}, "'text' is empty"),
        ({"id": 2, "text": " \t\r\n\u3000\xa0"}, "'text' is blank"),
        ('{"id": 2, "text": "ab\\ud800c"}', "'text' has a lone surrogate at character 2, which is not a Unicode text"),
        ({"id": None, "text": "a"}, "'id' is null"),
        ({"id": "", "text": "a"}, "'id' is empty"),
        ({"id": True, "text": "a"}, "'id' is of type bool, not an integer or a string"),
        ({"id": 1.5, "text": "a"}, "'id' is of type float, not an integer or a string"),
        ({"id": [1], "text": "a"}, "'id' is of type list, not an integer or a string"),
        ('{"id": NaN, "text": "a"}', "'id' is of type float, not an integer or a string"),
        ('{"id": {"a": [Infinity]}, "text": "a"}', "'id' is of type dict, not an integer or a string"),
        ('{"id": "\\udfff", "text": "a"}', "'id' has a lone surrogate"),
        ('{"id": "\\udfff", "text": ""}', "'text' is empty"),
    ],
)
def test_an_unusable_row_is_named_with_place_and_reason(
    row: Any, reason: str, write: Write, jsonl: Callable[..., Path]
) -> None:
    path = jsonl({"id": "first", "text": "a"}, row, {"id": "last", "text": "b"})
    summary, entries, rejected = write(path)
    assert [entry[0] for entry in entries] == ["first", "last"]
    (found,) = rejected
    assert (found["file"], found["row"], found["reason"]) == (str(path), 2, reason)
    assert set(found) == {"file", "row", "id", "reason"}
    if isinstance(row, dict):
        assert found["id"] == row["id"]
    assert (summary.rows, summary.rejected, summary.accepted) == (3, 1, 2)
    with refused(InputError, f"{path}, row 2") as caught:
        write(path, on_error="fail")
    assert caught.value.found == reason


def test_an_id_of_no_json_type_is_written_as_python_shows_it(write: Write, tmp_path: Path) -> None:
    ids = pa.array([b"\xff", None], pa.binary())
    pq.write_table(pa.table({"id": ids, "text": ["a", "b"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["x"], "text": ["c"]}), tmp_path / "b.parquet")
    _, _, rejected = write(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert [(row["row"], row["id"]) for row in rejected] == [(0, repr(b"\xff")), (1, None)]


def test_a_csv_row_with_too_many_fields_is_rejected_and_not_cut(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,tea, no coffee\n2,b\n3\n", encoding="utf-8")
    _, entries, rejected = write(tmp_path / "a.csv")
    assert entries == [("2", "b", 0, 3)]
    assert [(row["row"], row["id"], row["reason"]) for row in rejected] == [
        (2, 1, "3 fields, where the header has 2 (a text without quotes?)"),
        (4, 3, "no 'text' field"),
    ]


@pytest.mark.parametrize(("first", "second"), [("x", "x"), (1, 1), (1, "1"), ("1", 1)])
@pytest.mark.parametrize("files", [1, 2])
def test_a_duplicate_id_is_rejected_where_it_stands_again(
    first: Any, second: Any, files: int, write: Write, jsonl: Callable[..., Path]
) -> None:
    rows = [{"id": first, "text": "a"}, {"id": "other", "text": "b"}], [{"id": second, "text": "c"}]
    paths = [jsonl(*rows[0], *rows[1])] if files == 1 else [jsonl(*rows[0]), jsonl(*rows[1], name="b.jsonl")]
    summary, entries, rejected = write(*paths)
    assert entries == [(str(first), "a", 0, 1), ("other", "b", 0, 2)]
    assert rejected == [
        {
            "file": str(paths[-1]),
            "row": 3 if files == 1 else 1,
            "id": str(second),
            "reason": f"duplicate id; it stands first in {paths[0]}, row 1",
        }
    ]
    assert (summary.rows, summary.rejected) == (3, 1)
    place = f"{paths[-1]}, row {3 if files == 1 else 1}"
    with refused(InputError, place, found=f"duplicate id; it stands first in {paths[0]}, row 1"):
        write(*paths, on_error="fail")


def test_every_duplicate_names_the_first(write: Write, jsonl: Callable[..., Path]) -> None:
    path = jsonl(*[{"id": number % 3, "text": str(number)} for number in range(9)])
    _, entries, rejected = write(path)
    assert [entry[1] for entry in entries] == ["0", "1", "2"]
    assert [(row["row"], row["reason"][-1]) for row in rejected] == [(n + 1, str(n % 3 + 1)) for n in range(3, 9)]


def test_a_rejected_row_does_not_make_a_later_one_a_duplicate(write: Write, jsonl: Callable[..., Path]) -> None:
    _, entries, rejected = write(jsonl({"id": 1, "text": ""}, {"id": 1, "text": "b"}))
    assert [entry[1] for entry in entries] == ["b"]
    assert len(rejected) == 1


def test_equal_texts_are_no_duplicates(write: Write, jsonl: Callable[..., Path]) -> None:
    summary, entries, _ = write(jsonl({"id": 1, "text": "a"}, {"id": 2, "text": "a"}))
    assert (len(entries), summary.rejected) == (2, 0)


# --- nothing is dropped silently

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(width=16),
    st.sampled_from(["", " ", "1", "-2", "a", "b", "\ud800", "a\udfff", "NA", "😺", "\x00"]),
    st.lists(st.integers(), max_size=1),
)
json_rows = st.lists(
    st.fixed_dictionaries({}, optional={"id": values, "text": values, "extra": values}), min_size=1, max_size=30
)


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_usable(row: dict[str, Any], has_ids: bool) -> bool:
    """What a usable row is, said in another way than the code says it."""
    text, found = row.get("text"), row.get("id")
    if not isinstance(text, str) or not text.strip() or not is_unicode(text):
        return False
    return not has_ids or (type(found) is int) or (type(found) is str and found != "" and is_unicode(found))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(json_rows, min_size=1, max_size=3), has_ids=st.booleans())
@example(files=[[{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]], has_ids=True)
def test_every_row_is_an_entry_or_a_rejection(
    files: list[list[dict[str, Any]]], has_ids: bool, write: Write, jsonl: Callable[..., Path]
) -> None:
    for rows in files:
        rows[0].setdefault("text", "first")  # else the file has no text column
        for row in rows if not has_ids else ():
            row.pop("id", None)
    if has_ids:
        files[0][0].setdefault("id", "first")
    kept: list[Entry] = []
    unusable: list[tuple[str, int]] = []
    paths = [jsonl(*rows, name=f"{number}.jsonl") for number, rows in enumerate(files)]
    for file, rows in enumerate(files):
        for number, row in enumerate(rows, start=1):
            name = str(row.get("id")) if has_ids else str(len(kept) + len(unusable))
            if is_usable(row, has_ids) and name not in {entry[0] for entry in kept}:
                kept.append((name, row["text"], file, number))
            else:
                unusable.append((str(paths[file]), number))
    if not kept:
        with refused(InputError, found=f"none of {len(unusable)} rows can be used"):
            write(*paths)
        return
    summary, entries, rejected = write(*paths)
    assert entries == kept
    assert sorted((line["file"], line["row"]) for line in rejected) == sorted(unusable)
    assert all(line["reason"] for line in rejected)
    assert (summary.rows, summary.accepted, summary.rejected) == (len(kept) + len(unusable), len(kept), len(unusable))


# --- limit, errors, files


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 99])
def test_a_limit_counts_rows_over_all_files(limit: int, write: Write, jsonl: Callable[..., Path]) -> None:
    rows = [{"text": "a"}, {"text": ""}, {"text": "c"}]
    summary, entries, rejected = write(jsonl(*rows), jsonl(*rows[:2], name="b.jsonl"), limit=limit)
    assert summary.rows == min(limit, 5) == len(entries) + len(rejected)
    assert [(file, row) for _, _, file, row in entries] == [(0, 1), (0, 3), (1, 1)][: len(entries)]


def test_what_stands_beyond_the_limit_is_not_read(write: Write, jsonl: Callable[..., Path]) -> None:
    summary, entries, _ = write(jsonl({"text": "a"}, {"text": "b"}, {"text": "c"}, "broken"), limit=2)
    assert (summary.rows, len(entries)) == (2, 2)


def test_rows_that_are_all_unusable_are_an_error(write: Write, jsonl: Callable[..., Path]) -> None:
    path = jsonl({"text": ""}, {"text": None})
    first = f"{path}, row 1: 'text' is empty"
    with refused(InputError, path, found=f"none of 2 rows can be used; the first: {first}"):
        write(path)


def test_an_input_without_rows_is_an_error(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n", encoding="utf-8")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    files = f"{tmp_path / 'a.csv'}, {tmp_path / 'b.parquet'}"
    with refused(InputError, files, found=re.compile("^none of 0 rows can be used$")):
        write(tmp_path / "a.csv", tmp_path / "b.parquet")


@pytest.mark.parametrize("fault", ["broken", '{"id": 7, "text": "a"}', "[" * 10_000])
def test_an_error_leaves_no_file_and_the_old_ones_as_they_were(
    fault: str, write: Write, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path = jsonl({"text": "a"}, {"text": ""}, fault)
    for old in (False, True):
        if old:
            (tmp_path / "out.entries.arrow").write_bytes(b"old")
            (tmp_path / "out.rejected.jsonl").write_bytes(b"old")
        before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
        with pytest.raises(InputError):
            write(path)
        assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == before


def test_nothing_is_left_beside_the_two_files(write: Write, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    write(jsonl({"id": 1, "text": "a"}, {"id": 1, "text": "b"}))
    assert {found.name for found in tmp_path.iterdir()} == {"a.jsonl", "out.entries.arrow", "out.rejected.jsonl"}


@pytest.mark.slow
def test_many_rows_with_duplicates_keep_their_order(write: Write, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 20_000, size=25_000)
    pq.write_table(pa.table({"id": numbers, "text": [f"text {n}" for n in range(25_000)]}), tmp_path / "a.parquet")
    summary, entries, rejected = write(tmp_path / "a.parquet")
    _, first = np.unique(numbers, return_index=True)
    kept = np.sort(first)
    assert [row[3] for row in entries] == kept.tolist()
    assert [row[0] for row in entries] == [str(number) for number in numbers[kept]]
    assert sorted(line["row"] for line in rejected) == sorted(set(range(25_000)) - set(kept.tolist()))
    assert summary.rejected == len(rejected)


def test_a_loaded_dataset_is_read_like_a_file(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"id": ["x", "x", None], "text": ["a", "b", "c"]})
    entries, rejected = tmp_path / "entries.arrow", tmp_path / "rejected.jsonl"
    summary = write_entries([Source("some/name", dataset)], entries_path=entries, rejected_path=rejected)
    assert entries_of(entries) == [("x", "a", 0, 0)]
    assert [json.loads(line)["row"] for line in rejected.read_text(encoding="utf-8").splitlines()] == [2, 1]
    assert summary == EntriesSummary(files=["some/name"], rows=3, rejected=2, integer_ids=False, ids="column 'id'")
