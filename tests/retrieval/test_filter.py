"""Conditions over a run's columns: what they select, and what they cannot reach."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from memvec.errors import ConfigError, ExtraError

pytest.importorskip("duckdb")

from memvec.retrieval import filter as filter_module
from memvec.retrieval.filter import rows_where
from tests.helpers.refusals import refused

DATASET = Dataset(
    pa.table(
        {
            "id": [0, 1, 2, 3],
            "user": ["ana", "bo", None, "ana"],
            "score": [1.5, float("nan"), None, 0.5],
            "created_at": pa.array([datetime(2024, 1, day) for day in (1, 2, 3, 4)], pa.timestamp("us", tz="UTC")),
            "tags": [["a"], ["b", "a"], None, []],
            "meta": [{"x": 1}, {"x": 2}, None, {"x": 3}],
            "memory.user": ["a", "b", "c", "d"],
            "vector": pa.array([[0.0, 1.0]] * 4, pa.list_(pa.float32(), 2)),
        }
    )
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("user = 'ana'", [0, 3]),
        ("user == 'ana' and score > 1", [0]),
        ("user != 'ana'", [1]),  # null is neither
        ("user is null or user = 'bo'", [1, 2]),
        ("not (user = 'ana')", [1]),
        ("created_at >= '2024-01-03'", [2, 3]),
        ("created_at between '2024-01-01 12:00' and '2024-01-03'", [1, 2]),
        ("list_contains(tags, 'a')", [0, 1]),
        ("meta.x > 1 and id < 3", [1]),
        ("\"memory.user\" in ('b', 'c')", [1, 2]),
        ("user like 'a%' -- a comment", [0, 3]),
        ("null::boolean", []),
        ('user == "ana"', [0, 3]),  # without single quotes, what is in double ones and is no column is a text
        ('"user" == "ana" and created_at < "2024-01-02"', [0]),
        ('"memory.user" in ("b", "c")', [1, 2]),
    ],
)
def test_a_condition_selects_the_rows_for_which_it_is_true(where: str, rows: list[int]) -> None:
    assert rows_where(DATASET, where).nonzero()[0].tolist() == rows


@pytest.mark.parametrize("where", ["user = 'ana'", "id < 2 or current_user = 'duckdb'", "upper(USER) is not null"])
def test_the_databases_own_user_is_no_column(where: str) -> None:
    found = re.compile(r'there is no column (current_)?user; columns: "id", "score"')
    with refused(ConfigError, "where", where, found=found):
        rows_where(DATASET.select_columns(["id", "score"]), where)


@pytest.mark.parametrize(
    ("where", "found", "fields"),
    [
        ("order = 1", 'Parser Error: syntax error .*; columns: "id", "user"', {}),
        ("user = ", "Parser Error: syntax error", {}),
        ("", "Parser Error", {}),
        ("usr = 'ana'", 'column "usr" not found .*; columns: "id", "user", "score", "created_at", "tags"', {}),
        (
            "user = 'bo' or user = \"ana\"",
            '"ana" not found ',
            {"advice": "texts stand in single quotes: where=user = 'bo' or user = 'ana'"},
        ),
        ('"usr" == "ana"', 'it names no column; columns: "id", "user"', {}),
        ("score", "of type DOUBLE", {"allowed": "BOOLEAN"}),
        ("user", "of type VARCHAR", {"allowed": "BOOLEAN"}),
        ("count(*) > 1", "WHERE clause cannot contain aggregates", {}),
        ("true, false", "Expected a single expression", {}),
        ("columns('id|score') > 1", "of type BOOLEAN, BOOLEAN", {"allowed": "BOOLEAN"}),
        ("user::int = 1", "Could not convert string 'ana'", {}),
        ("vector is not null", 'Referenced column "vector" not found', {}),
    ],
)
def test_what_is_no_condition_is_said_in_one_line(where: str, found: str, fields: dict[str, Any]) -> None:
    with refused(ConfigError, "where", where, found=re.compile(found), **fields) as error:
        rows_where(DATASET, where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "where",
    [
        "true; drop table rows",
        "exists (select * from read_csv('{path}'))",
        "exists (select * from read_text('{path}'))",
        "exists (select * from '{path}')",
        "exists (select * from glob('/*'))",
        "exists (select * from secret)",
        "getenv('HOME') is not null",
        "exists (from duckdb_settings() where value = 'x'); set enable_external_access = true",
    ],
)
def test_a_condition_reaches_nothing_but_the_rows(where: str, tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("a,b\n1,2\n")
    secret = pa.table({"a": [1]})
    with pytest.raises(ConfigError):
        rows_where(DATASET, where.format(path=path))
    assert len(secret) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_without_the_database_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, **said: str) -> None:
        raise ExtraError(said["purpose"], found=module, advice=said["extra"])

    monkeypatch.setattr(filter_module, "import_extra", missing)
    with refused(ExtraError, "where=", found="duckdb", advice="where"):
        rows_where(DATASET, "true")
