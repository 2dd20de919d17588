"""Files of queries: what is read from them, and what is said about a row that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memvec.errors import InputError
from memvec.retrieval.queries import read_judged_queries, read_queries
from tests.helpers.refusals import refused


def test_json_lines_name_what_is_relevant_and_where_to_look(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        [{"query": "tea?", "relevant": ["a/1", "a/2"], "within": "a/"}, {"query": "cat?", "relevant": [7]}]
    )
    tea, cat = read_judged_queries(path)
    assert (tea.text, tea.relevant, tea.within) == ("tea?", {"a/1", "a/2"}, "a/")
    assert (cat.text, cat.relevant, cat.within) == ("cat?", {7}, "")
    assert [query.text for query in read_queries(path)] == ["tea?", "cat?"]


def test_a_text_file_holds_a_query_a_line(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("what does she drink?\n养了什么？\n", encoding="utf-8")
    assert [query.text for query in read_queries(tmp_path / "q.txt")] == ["what does she drink?", "养了什么？"]


@pytest.mark.parametrize(
    ("row", "found", "allowed"),
    [
        ({"query": " ", "relevant": ["a"]}, "'query' is blank", ""),
        ({"query": 7, "relevant": ["a"]}, "'query' is of type int, not a string", ""),
        ({"relevant": ["a"]}, "no 'query' field", ""),
        ({"query": "b"}, "'relevant': found nothing", "a list of at least one id"),
        ({"query": "b", "relevant": []}, "'relevant': found []", "a list of at least one id"),
        ({"query": "b", "relevant": "a"}, "'relevant': found 'a'", "a list of at least one id"),
        ({"query": "b", "relevant": [1.5]}, "'relevant': found [1.5]", "a list of at least one id"),
        ({"query": "b", "relevant": ["a"], "within": 3}, "'within': found 3", "a string"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    row: Any, found: str, allowed: str, write_jsonl: Callable[..., Path]
) -> None:
    path = write_jsonl([{"query": "a", "relevant": ["a"]}, row])
    with refused(InputError, f"{path}, row 2", found=found, allowed=allowed):
        read_judged_queries(path)


@pytest.mark.parametrize(
    ("name", "content", "found", "allowed"),
    [
        ("q.md", "a", "not a file of queries", ".jsonl"),
        ("q.jsonl", "", "the file is empty", ""),
        ("q.json", "[]", "no column 'query'", ""),
        ("q.csv", "query\n", "holds no query", ""),
    ],
)
def test_a_file_that_cannot_be_used_is_named(name: str, content: str, found: str, allowed: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with refused(InputError, tmp_path / name, found=found, allowed=allowed):
        read_queries(tmp_path / name)


def test_a_column_of_another_name_is_advised_queries_own(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,day\ntea?,1\n")
    with refused(
        InputError, path, found="columns found: question, day", advice="call the column of the queries 'query'"
    ):
        read_queries(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with refused(InputError, "missing.jsonl", found="cannot be read"):
        read_queries(tmp_path / "missing.jsonl")


def test_a_file_at_an_address_is_refused(tmp_path: Path) -> None:
    with refused(InputError, "queries", "s3://bucket/q.txt", allowed="a file of this machine"):
        read_queries("s3://bucket/q.txt")
    (tmp_path / "q.txt").write_text("tea")
    assert [query.text for query in read_queries(f"file://{tmp_path / 'q.txt'}")] == ["tea"]
