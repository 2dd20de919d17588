"""Kept columns: each of one type, whatever the values are, row by row those of the entries."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

import memvec.data.keeping as keeping_module
from memvec.data.dataset import write_entries
from memvec.data.keeping import KeptColumns
from memvec.data.kept import KeptRows
from memvec.data.source import Source, find_sources
from memvec.errors import InputError
from tests.helpers.refusals import refused

Keep = Callable[..., tuple[dict[str, pa.DataType], list[dict[str, Any]]]]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Reads paths or sources and returns the types and the rows of the columns that are kept."""

    def run(names: list[str], *inputs: Path | Source, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        sources = [source for one in inputs for source in ([one] if isinstance(one, Source) else find_sources(one))]
        kept = KeptColumns(names, folder / "kept.arrow")
        paths = {"entries_path": folder / "entries.arrow", "rejected_path": folder / "rejected.jsonl"}
        try:
            summary = write_entries(sources, kept=kept, **paths, **options)
        finally:
            assert not list(folder.glob(".*"))  # nothing is left of what was on its way
        rows = KeptRows(folder / "kept.arrow")
        return rows.types, [rows.row(row) for row in range(summary.accepted)]

    return run


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines, each with a text."""

    def save(*rows: dict[str, Any], name: str = "a.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": f"text {n}", **row}) + "\n" for n, row in enumerate(rows)))
        return path

    return save


@pytest.mark.parametrize("rows_per_batch", [1, 2, 10_000])
def test_types_of_json_are_those_that_all_rows_have_in_common(
    rows_per_batch: int, keep: Keep, lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "ROWS_PER_BATCH", rows_per_batch)
    path = lines(
        {"user": None, "score": 1, "tags": [], "meta": {"a": 1}, "ok": True, "never": None},
        {"user": "ana", "score": 2.5, "tags": ["x"], "meta": {"b": {"c": "z"}}},
        {"score": None, "tags": None, "meta": None, "ok": False},
    )
    types, rows = keep(["user", "score", "tags", "meta", "ok", "never"], path)
    assert types == {
        "user": pa.string(),
        "score": pa.float64(),
        "tags": pa.list_(pa.string()),
        "meta": pa.struct({"a": pa.int64(), "b": pa.struct({"c": pa.string()})}),
        "ok": pa.bool_(),
        "never": pa.string(),
    }
    assert [row["user"] for row in rows] == [None, "ana", None]
    assert [row["score"] for row in rows] == [1.0, 2.5, None]
    assert [row["tags"] for row in rows] == [[], ["x"], None]
    assert [row["meta"] for row in rows] == [{"a": 1, "b": None}, {"a": None, "b": {"c": "z"}}, None]
    assert [row["ok"] for row in rows] == [True, None, False]


TABLE = pa.table(
    {
        "text": ["a", "b"],
        "at": pa.array([datetime(2024, 5, 1, 10, tzinfo=UTC), None], pa.timestamp("ns", tz="UTC")),
        "small": pa.array([1, None], pa.int8()),
        "large": pa.array([2**64 - 1, 0], pa.uint64()),
        "name": pa.array(["x", "x"]).dictionary_encode(),
        "parts": pa.array([[{"a": [1]}], None]),
        "pair": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
        "key": pa.array([b"0" * 16, None], pa.binary(16)),
        "memory": pa.array([{"user": "ana"}, None]),
    }
)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "dataset"])
def test_types_that_are_declared_are_kept(kind: str, keep: Keep, tmp_path: Path) -> None:
    source: Path | Source = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(TABLE, source)
    elif kind == "arrow":
        feather.write_feather(TABLE, str(source))
    else:
        source = Source("rows", Dataset(TABLE.drop_columns("key").append_column("key", pa.array(["30" * 16, None]))))
    types, rows = keep(["at", "small", "large", "name", "parts", "pair", "key", "memory.user"], source)
    declared = {name: TABLE.schema.field(name).type for name in ("at", "small", "large", "parts", "pair")}
    assert types == {**declared, "name": pa.string(), "key": pa.string(), "memory.user": pa.string()}
    assert rows[0] == {
        "at": pd.Timestamp("2024-05-01T10:00:00Z"),
        **{"small": 1, "large": 2**64 - 1, "name": "x", "parts": [{"a": [1]}], "pair": [1.0, 2.0]},
        "key": "30" * 16 if kind == "dataset" else "30303030-3030-3030-3030-303030303030",
        "memory.user": "ana",
    }
    assert rows[1] == {**dict.fromkeys(types), "large": 0, "name": "x"}


def test_values_of_csv_are_strings(keep: Keep, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,n,user\nx,007,ana\ny,,NA\n")
    types, rows = keep(["n", "user"], path)
    assert types == {"n": pa.string(), "user": pa.string()}
    assert rows == [{"n": "007", "user": "ana"}, {"n": "", "user": "NA"}]


def test_files_of_other_types_or_without_a_column_go_together(
    keep: Keep, lines: Callable[..., Path], tmp_path: Path
) -> None:
    pq.write_table(TABLE, tmp_path / "b.parquet")
    first, last = lines({"small": 2.5}, name="a.jsonl"), lines({"other": 1}, name="c.jsonl")
    types, rows = keep(["small"], first, tmp_path / "b.parquet", last)
    assert types == {"small": pa.float64()}
    assert [row["small"] for row in rows] == [2.5, 1.0, None, None]


def test_rows_whose_id_was_there_before_are_left_out(keep: Keep, lines: Callable[..., Path]) -> None:
    path = lines({"id": 1, "user": "ana"}, {"id": 1, "user": "bo"}, {"id": 2, "user": "cy"}, {"id": 3, "text": " "})
    assert keep(["user"], path)[1] == [{"user": "ana"}, {"user": "cy"}]


@pytest.mark.parametrize("rows_per_batch", [1, 10_000])
@pytest.mark.parametrize(
    ("rows", "place", "found"),
    [
        ([{"n": 1}, {"n": "x"}], ", row 2", "'n' is of type string, but of type int64 from "),
        ([{"n": [1, "x"]}], ", row 1", "'n' cannot be kept: Could not convert 'x'"),
        ([{"n": {"m": 1}}, {}, {"n": [1]}], ", row 3", "'n' is of type list<item: int64>, but of type struct<"),
        ([{"n": True}, {"n": 1}], ", row 2", "'n' is of type int64, but of type bool from "),
        ([{"n": 2**60 + 1}, {"n": 0.5}], "", "'n': Integer value 1152921504606846977 "),
        ([{"n": {}}], "", "column 'n' of type struct<> cannot be kept: an object has no field in any row"),
        ([{"n": {"_type": "Image"}}], "", "cannot be kept: an object has a field '_type'"),
        ([{"m": 1, "user": 2}], "", "no row has the column 'n'; columns found: text, m, user"),
        ([{"n": {f"k{n}": n for n in range(1001)}}], ", row 1", "the objects of 'n' have more than 1,000 different"),
    ],
)
def test_what_no_column_can_hold_is_said(
    rows: list[dict[str, Any]],
    place: str,
    found: str,
    rows_per_batch: int,
    keep: Keep,
    lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping_module, "ROWS_PER_BATCH", rows_per_batch)
    path = lines(*rows)
    with refused(InputError, re.compile(f"^{re.escape(str(path))}{place or '(, rows.*)?'}$"), found=found):
        keep(["n"], path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("\ud800", "'n' has a lone surrogate at character 0"),
        ({"m": ["\udfff"]}, "'n' has a lone surrogate at character 0"),
        (2**63, "'n' is an integer of more than 64 bits"),
        ([[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]], "'n' is nested more than 16 deep"),
    ],
)
def test_a_row_with_a_value_that_nothing_holds_is_rejected(
    value: Any, reason: str, keep: Keep, lines: Callable[..., Path], tmp_path: Path
) -> None:
    assert keep(["n"], lines({"n": value}, {"n": None}))[1] == [{"n": None}]
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith(reason)


def test_a_declared_type_that_no_dataset_holds_is_said(keep: Keep, tmp_path: Path) -> None:
    table = TABLE.append_column("map", pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())))
    pq.write_table(table, tmp_path / "a.parquet")
    with refused(InputError, "a.parquet", found=re.compile(r"column 'map' of type map<.* cannot be kept")):
        keep(["map"], tmp_path / "a.parquet")


def test_files_that_declare_other_types_are_said(keep: Keep, lines: Callable[..., Path], tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "b.parquet")
    with refused(InputError, "b.parquet", found="column 'at' is of type timestamp[ns, tz=UTC], but string"):
        keep(["at"], lines({"at": "2024-05-01"}), tmp_path / "b.parquet")


def test_two_columns_of_a_name_that_is_kept_are_refused(keep: Keep, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,user,user\nx,1,2\n")
    with refused(InputError, "a.csv", found="2 columns are called 'user'", allowed="one"):
        keep(["user"], tmp_path / "a.csv")


def test_a_document_has_no_columns_to_keep(keep: Keep, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with refused(InputError, "a.txt", found="no row has the column 'user'; columns found: none"):
        keep(["user"], tmp_path / "a.txt")
