"""Files of queries: what is read from them, and what is said about a row that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memvec.errors import InputError
from memvec.retrieval.queries import read_judged_queries, read_queries


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
    ("row", "message"),
    [
        ({"query": " ", "relevant": ["a"]}, "row 2: 'query' is blank"),
        ({"query": 7, "relevant": ["a"]}, "row 2: 'query' is of type int, not a string"),
        ({"relevant": ["a"]}, "row 2: no 'query' field"),
        ({"query": "b"}, "row 2: 'relevant': found nothing; allowed: a list of at least one id"),
        ({"query": "b", "relevant": []}, "row 2: 'relevant': found []; allowed: a list of at least one id"),
        ({"query": "b", "relevant": "a"}, "row 2: 'relevant': found 'a'; allowed: a list of at least one id"),
        ({"query": "b", "relevant": [1.5]}, "row 2: 'relevant': found [1.5]; allowed: a list of at least one id"),
        ({"query": "b", "relevant": ["a"], "within": 3}, "row 2: 'within': found 3; allowed: a string"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: Any, message: str, write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"query": "a", "relevant": ["a"]}, row])
    with pytest.raises(InputError, match=re.escape(f"memories.jsonl, {message}")):
        read_judged_queries(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.md", "a", "not a file of queries; allowed: .jsonl"),
        ("q.jsonl", "", "the file is empty"),
        ("q.json", "[]", "no column 'query'"),
        ("q.csv", "query\n", "holds no query"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_queries(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl: cannot be read"):
        read_queries(tmp_path / "missing.jsonl")


def test_a_file_at_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^queries=s3://bucket/q\.txt: allowed: a file of this machine$"):
        read_queries("s3://bucket/q.txt")
    (tmp_path / "q.txt").write_text("tea")
    assert [query.text for query in read_queries(f"file://{tmp_path / 'q.txt'}")] == ["tea"]
