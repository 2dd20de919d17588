"""Rows that a program gives are read, validated and told apart as a file's are."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from memvec.data.formats.fields import MISSING
from memvec.data.given import source_of
from memvec.errors import InputError, MemvecError
from tests.helpers.refusals import refused, refused_as

ROWS = [{"id": "a", "text": "tea"}, {"id": "b", "text": "coffee", "more": 1}]
COLUMNS = {"id": ["a", "b"], "text": ["tea", "coffee"]}


def records(data: Any, *, text_column: str = "text", id_column: str | None = "id", **options: Any) -> list[Any]:
    return list(source_of(data, **options).records(text_column=text_column, id_column=id_column))


def digest(data: Any) -> str:
    return source_of(data).digest(columns=("text", "id"))


def frame(*arguments: Any, **options: Any) -> Any:
    pandas: Any = pytest.importorskip("pandas")
    return pandas.DataFrame(*arguments, **options)


KINDS: dict[str, Callable[[], Any]] = {
    "a list of dictionaries": lambda: ROWS,
    "a tuple of them": lambda: tuple(ROWS),
    "a dataset": lambda: Dataset.from_dict(COLUMNS),
    "a dataset with splits": lambda: DatasetDict({"train": Dataset.from_dict(COLUMNS)}),
    "a column of objects": lambda: Dataset.from_dict({"row": ROWS})["row"],
    "an Arrow table": lambda: pa.table(COLUMNS),
    "an Arrow table with a dictionary": lambda: pa.table(
        {**COLUMNS, "text": pa.array(COLUMNS["text"]).dictionary_encode()}
    ),
    "a record batch": lambda: pa.RecordBatch.from_pydict(COLUMNS),
    "a DataFrame": lambda: frame(COLUMNS, index=[7, 3]),
    "a DataFrame of categories": lambda: frame(COLUMNS).astype({"text": "category"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_from(kind: str) -> None:
    assert records(KINDS[kind]()) == [(0, "a", "tea"), (1, "b", "coffee")]


@pytest.mark.parametrize(
    "texts", [["tea", "coffee"], ("tea", "coffee"), np.array(["tea", "coffee"]), pa.array(["tea", "coffee"])]
)
def test_texts_are_rows_without_columns(texts: Any) -> None:
    assert records(texts) == [(0, MISSING, "tea"), (1, MISSING, "coffee")]
    assert not source_of(texts).has_columns


def test_a_polars_table_is_read() -> None:
    polars: Any = pytest.importorskip("polars")
    assert records(polars.DataFrame(COLUMNS)) == [(0, "a", "tea"), (1, "b", "coffee")]


def test_columns_are_named_as_for_files() -> None:
    rows = [{"key": 1, "memory": {"text": "tea"}}]
    for data in (rows, Dataset.from_list(rows), pa.Table.from_pylist(rows), frame(rows)):
        assert records(data, text_column="memory.text", id_column="key") == [(0, 1, "tea")]
        more = source_of(data).records(text_column="memory.text", id_column=None, more=["key", "nothing"])
        assert list(more) == [(0, MISSING, "tea", 1, MISSING)]


def test_what_is_missing_is_null_or_missing() -> None:
    found = frame({"id": [1, 2, 3], "text": ["tea", None, float("nan")]})
    assert records(found) == [(0, 1, "tea"), (1, 2, None), (2, 3, None)]
    assert records([{"text": "tea"}, {"id": 1}]) == [(0, MISSING, "tea"), (1, 1, MISSING)]


def test_numpys_scalars_and_uuids_are_ids() -> None:
    number = uuid.UUID(int=5)
    rows = [{"id": np.int64(3), "text": np.str_("tea")}, {"id": number, "text": "coffee"}]
    found = records(rows)
    assert found == [(0, 3, "tea"), (1, str(number), "coffee")]
    assert type(found[0][1]) is int
    table = {"id": np.array([3, 4]), "text": ["tea", "coffee"]}
    assert [type(row[1]) for row in records(frame(table))] == [int, int]


def test_rows_of_any_length_keep_their_numbers() -> None:
    texts = [f"text {row}" for row in range(25_001)]
    for data in (frame({"text": texts}), pa.table({"text": texts}), [{"text": text} for text in texts]):
        assert [row[::2] for row in records(data)][::5_000] == [(row, f"text {row}") for row in range(0, 25_001, 5_000)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_follows_the_content(kind: str) -> None:
    make = KINDS[kind]
    if "column of objects" in kind or "splits" in kind:
        return
    assert digest(make()) == digest(make())
    other = {"id": ["a", "b"], "text": ["tea", "cocoa"]}
    changed = {"list": [{**row, "text": text} for row, text in zip(ROWS, other["text"], strict=True)]}
    assert digest(changed["list"]) != digest(ROWS)
    assert digest(Dataset.from_dict(other)) != digest(Dataset.from_dict(COLUMNS))
    assert digest(frame(other)) != digest(frame(COLUMNS))


def test_what_is_not_read_does_not_change_the_digest() -> None:
    assert digest(frame({**COLUMNS, "price": [1, 2]})) == digest(frame(COLUMNS)) == digest(ROWS)
    assert digest(pa.table({**COLUMNS, "price": [1, 2]})) == digest(Dataset.from_dict(COLUMNS))
    assert digest(["tea"]) != digest(["tea", "tea"])


def test_values_that_are_no_json_have_one_digest_in_all_runs() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (object, {1, 2}, loop, {(1, 2): 3}, float("nan"), b"bytes", "\ud800"):
        assert digest([{"text": value}]) == digest([{"text": value}])
    assert digest([{"text": object()}]) == digest([{"text": object()}])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("tea", InputError("data", found="found one string")),
        ({"text": ["tea"]}, InputError("data", found="found a dict")),
        ((text for text in ["tea"]), InputError("data", found="found a generator, which can be read only once")),
        (7, InputError("data", found="found int")),
        (
            Dataset.from_dict(COLUMNS).to_iterable_dataset(),
            InputError("data", found="found a IterableDataset, which has no rows to come back"),
        ),
    ],
)
def test_what_is_no_rows_is_said(data: Any, expected: MemvecError) -> None:
    with refused_as(expected):
        source_of(data)


def test_rows_that_are_no_rows_are_said() -> None:
    with refused(InputError, "data, row 1", found="found int", allowed='an object such as {"text": …}'):
        records([{"text": "tea"}, 7])
    for data in ([{"body": "tea"}], frame({"body": ["tea"]}), pa.table({"body": ["tea"]})):
        found = "no column 'text'; columns found: body"
        with refused(InputError, "data", found=found, advice="set data.text_column"):
            records(data)
    with refused(InputError, "data", found="2 columns are called 'text'", allowed="one"):
        records(frame([["tea", "coffee"]], columns=["text", "text"]))
    with refused(InputError, "data", found="no split 'train'; splits found: test"):
        source_of(DatasetDict({"test": Dataset.from_dict(COLUMNS)}))


def test_a_split_is_chosen(tmp_path: Path) -> None:
    splits = DatasetDict({"train": Dataset.from_dict({"text": ["a"]}), "test": Dataset.from_dict({"text": ["b"]})})
    assert records(splits, split="test") == [(0, MISSING, "b")]
