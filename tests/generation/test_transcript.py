"""Which rows are conversations, what their messages are, and what is said about the others."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memvec.data.formats.fields import MISSING, Malformed
from memvec.data.source import find_sources
from memvec.errors import InputError
from memvec.generation.transcript import Message, Transcript, TranscriptSource
from tests.helpers.refusals import refused

Write = Callable[..., Path]


def read(path: Path, *, column: str = "messages", date_column: str | None = "date") -> list[tuple[Any, ...]]:
    sources = [TranscriptSource(source, date_column) for source in find_sources(str(path))]
    return [record for source in sources for record in source.records(text_column=column, id_column="id")]


def transcript(path: Path, **options: Any) -> Transcript:
    ((_, _, content),) = read(path, **options)
    assert isinstance(content, str), content
    return Transcript.from_json(content)


def row(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "messages": list(messages), **fields}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"speaker": "Ann", "text": "Hi"}, Message("Hi", "Ann")),
        ({"role": "user", "content": "Hi"}, Message("Hi", "user")),
        ({"speaker": " Ann\n", "text": " Hi\n there "}, Message("Hi there", "Ann")),
        (
            {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url"}]},
            Message("Look", "user"),
        ),
        ({"role": "assistant", "content": None, "tool_calls": []}, Message("", "assistant")),
        ({"speaker": None, "role": "user", "text": None, "content": "Hi"}, Message("Hi", "user")),
    ],
)
def test_both_spellings_of_a_message_are_read(message: Any, expected: Message, write_conversations: Write) -> None:
    other = {"speaker": "Bob", "text": "Hello"}
    found = transcript(write_conversations([row(message, other)]))
    assert found.messages == (expected, Message("Hello", "Bob"))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (7, "the messages are of type int, not a list or a text"),
        ({"speaker": "Ann"}, "the messages are of type dict"),
        ([], "no message has any text"),
        ([{"speaker": "Ann", "text": " "}], "no message has any text"),
        ("\n", "no message has any text"),
        (["Hi"], "message 0 is of type str, not an object"),
        ([{"speaker": "Ann", "text": "Hi"}, {"text": "Hi"}], "message 1 has no 'speaker' or 'role'"),
        ([{"speaker": "Ann", "txt": "Hi"}], "message 0 has no 'text' or 'content'; fields found: speaker, txt"),
        ([{"speaker": 3, "text": "Hi"}], "the speaker of message 0 is of type int, not a string"),
        ([{"speaker": "Ann", "text": 3}], "the text of message 0 is of type int, not a string"),
        ([{"speaker": "Ann", "text": ["Hi"]}], "the text of message 0 is of type list"),
        ([{"speaker": "Ann", "text": "\ud800"}], "the text of message 0 has a lone surrogate"),
        ("a \ud800", "the text has a lone surrogate at character 2"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(messages: Any, reason: str, write_conversations: Write) -> None:
    ((place, record_id, content),) = read(write_conversations([{"id": "a", "messages": messages}]))
    assert (place, record_id) == (1, "a")
    assert isinstance(content, Malformed)
    assert reason in content.reason


def test_what_is_not_there_is_left_for_the_validation_to_name(write_conversations: Write) -> None:
    rows = [row({"speaker": "Ann", "text": "Hi"}), {"id": "b"}, {"id": "c", "messages": None}]
    assert [content for _, _, content in read(write_conversations(rows))][1:] == [MISSING, None]


@pytest.mark.parametrize(
    ("fields", "expected"), [({"date": "4 May"}, "4 May"), ({"date": 2021}, "2021"), ({"date": ""}, None), ({}, None)]
)
def test_the_date_is_kept_in_the_inputs_own_words(
    fields: dict[str, Any], expected: str | None, write_conversations: Write
) -> None:
    path = write_conversations([row({"speaker": "Ann", "text": "Hi"}, **fields)])
    assert transcript(path).date == expected
    assert transcript(path, date_column=None).date is None


def test_parquet_gives_what_json_lines_give(tmp_path: Path, write_conversations: Write) -> None:
    rows = [
        row({"speaker": "Ann", "text": "Hi"}, {"speaker": "Bob", "text": "你好"}, date="May"),
        {"id": "b", "messages": [{"speaker": "Ann", "text": "Hm"}], "date": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    found = [(name, content) for _, name, content in read(tmp_path / "c.parquet")]
    assert found == [(name, content) for _, name, content in read(write_conversations(rows))]


def test_a_date_column_of_timestamps_becomes_text(tmp_path: Path) -> None:
    rows = [row({"speaker": "Ann", "text": "Hi"}, date=datetime.datetime(2026, 5, 4, 10, 30))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert transcript(tmp_path / "c.parquet").date == "2026-05-04 10:30:00"


def test_a_text_file_is_a_document_of_a_message_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "bridge.txt").write_text("The bridge.\n\n  It is old.\n", encoding="utf-8")
    (folder / "tower.txt").write_text("塔", encoding="utf-8")
    found = read(folder)
    assert [name for _, name, _ in found] == ["bridge", "tower"]
    first = Transcript.from_json(found[0][2])
    assert first.messages == (Message("The bridge."), Message("It is old."))
    assert first.messages[0].render() == "The bridge."


def test_a_column_of_texts_holds_documents(write_conversations: Write) -> None:
    path = write_conversations([{"id": "a", "text": "One.\nTwo."}])
    assert transcript(path, column="text").messages == (Message("One."), Message("Two."))


def test_a_file_without_the_column_or_broken_is_named(tmp_path: Path, write_conversations: Write) -> None:
    found = "no column 'messages'; columns found: id, turns"
    with refused(InputError, "conversations.jsonl", found=found, advice="set data.messages_column"):
        read(write_conversations([{"id": "a", "turns": []}]))
    (tmp_path / "broken.jsonl").write_text(json.dumps(row({"speaker": "A", "text": "b"})) + '\n{"id": ')
    with refused(InputError, "broken.jsonl, line 2", found="not JSON"):
        read(tmp_path / "broken.jsonl")


def test_a_transcript_reads_back_as_it_was_written() -> None:
    written = Transcript((Message('"quoted" \u2028', "小林"), Message("x")), "五月")
    assert Transcript.from_json(written.to_json()) == written
