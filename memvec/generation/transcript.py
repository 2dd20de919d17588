"""Reads conversations: whose messages they are, or the paragraphs of a document, as rows that can be validated.

In: sources (`memvec.data.source`) whose rows hold a list of messages, in LoCoMo's spelling (`speaker`, `text`) or
OpenAI's (`role`, `content`), or a text; a `.txt` file is one text, and its name the id. Out: `(row, id, transcript)` as
any other reader yields it, where the transcript is a `Transcript` written as JSON, or says what is wrong with the row
(`Malformed`). So `memvec.data.dataset.write_entries` validates, counts and stores conversations as it does memory
texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from memvec.data.dataset import asked_column
from memvec.data.formats.fields import MISSING, NAMES_SHOWN, Malformed, Record, without_text_column
from memvec.data.given import GivenRows
from memvec.data.source import Source
from memvec.data.validation import lone_surrogate
from memvec.schema import DATE

SPEAKER_KEYS = ("speaker", "role")
TEXT_KEYS = ("text", "content")


@dataclass(frozen=True)
class Message:
    """One message, or one paragraph of a document.

    Args:
        text: What was said; empty for a message without words, which keeps its number.
        speaker: Who said it; None in a document.
    """

    text: str
    speaker: str | None = None

    def render(self) -> str:
        """Returns the message as the model reads it."""
        return self.text if self.speaker is None else f"{self.speaker}: {self.text}"


@dataclass(frozen=True)
class Transcript:
    """A conversation.

    Args:
        messages: In order.
        date: When it was, in the input's own words, or None.
    """

    messages: tuple[Message, ...]
    date: str | None = None

    def to_json(self) -> str:
        """Returns the form it is stored in."""
        messages = [[message.speaker, message.text] for message in self.messages]
        return json.dumps({"date": self.date, "messages": messages}, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> Transcript:
        """Reads what `to_json` wrote."""
        stored = json.loads(content)
        return cls(tuple(Message(text, speaker) for speaker, text in stored["messages"]), stored["date"])


@dataclass
class TranscriptSource:
    """A source of conversations.

    Args:
        source: Where the rows come from.
        date_column: Name of the field with the date; `auto` is `date`; None means no dates.
        has_dates: Whether a row that was read has that field.
    """

    source: Source | GivenRows
    date_column: str | None = None
    has_dates: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """What messages and `rejected.jsonl` call it."""
        return self.source.name

    def digest(self, *, columns: Sequence[str | None]) -> str:
        """Returns a digest of the content, as `Source.digest` does."""
        return self.source.digest(columns=(*columns, asked_column(self.date_column, DATE)))

    def column_types(self, names: Sequence[str]) -> Mapping[str, pa.DataType]:
        """Returns the types of columns by their names, as far as the source declares them."""
        return self.source.column_types(names)

    def column_names(self, *, text_column: str) -> list[str]:
        """Returns the names of its columns."""
        return self.source.column_names(text_column=text_column)

    def records(self, *, text_column: str, id_column: str | None, more: Sequence[str] = ()) -> Iterator[Record]:
        """Yields `(row, id, transcript, *more)`.

        Args:
            text_column: Name of the field with the messages, or with a document's text.
            id_column: Name of the field with the id, or None.
            more: Names of further fields, which a row need not have.
        """
        date_column = asked_column(self.date_column, DATE)
        dates = () if date_column is None else (date_column,)
        records = self.source.records(text_column=text_column, id_column=id_column, more=(*more, *dates))
        if not self.source.has_columns:
            lines = "\n".join(record[2] for record in records)
            yield 1, Path(self.name).stem, _to_json(lines, None), *(MISSING for _ in more)
            return
        with without_text_column("set data.messages_column"):
            for row, record_id, messages, *others in records:
                date = others[-1] if dates else MISSING
                self.has_dates = self.has_dates or date is not MISSING
                yield row, record_id, _to_json(messages, date), *others[: len(more)]


def _to_json(messages: Any, date: Any) -> Any:
    """Returns the transcript of a row as JSON, or what is wrong with it; what is not there stays as it is."""
    if messages is MISSING or messages is None or isinstance(messages, Malformed):
        return messages
    try:
        read = _paragraphs(messages) if isinstance(messages, str) else _messages(messages)
    except _Unusable as problem:
        return Malformed(str(problem))
    if not any(message.text for message in read):
        return Malformed("no message has any text")
    return Transcript(tuple(read), None if date is None or date is MISSING or date == "" else str(date)).to_json()


class _Unusable(Exception):  # noqa: N818 - never leaves this module
    """Says why a row is no conversation."""


def _paragraphs(text: str) -> list[Message]:
    if (at := lone_surrogate(text)) is not None:
        raise _Unusable(f"the text has a lone surrogate at character {at}, which is not a Unicode text")
    return [Message(line.strip()) for line in text.splitlines() if line.strip()]


def _messages(messages: Any) -> list[Message]:
    if not isinstance(messages, Sequence):
        raise _Unusable(f"the messages are of type {type(messages).__name__}, not a list or a text")
    return [_message(message, f"message {number}") for number, message in enumerate(messages)]


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise _Unusable(f"{place} is of type {type(message).__name__}, not an object")
    speaker = _first(message, SPEAKER_KEYS)
    if not isinstance(speaker, str | None):
        raise _Unusable(f"the speaker of {place} is of type {type(speaker).__name__}, not a string")
    if speaker is None or not speaker.strip():
        raise _Unusable(_without(SPEAKER_KEYS, message, place))
    if not any(key in message for key in TEXT_KEYS):
        raise _Unusable(_without(TEXT_KEYS, message, place))
    text = _spoken(_first(message, TEXT_KEYS), place)
    for name, value in (("speaker", speaker), ("text", text)):
        if lone_surrogate(value) is not None:
            raise _Unusable(f"the {name} of {place} has a lone surrogate, which is not a Unicode text")
    return Message(" ".join(text.split()), " ".join(speaker.split()))


def _without(keys: Sequence[str], message: dict[str, Any], place: str) -> str:
    """Says that a message has none of some fields, and which it has."""
    found = ", ".join(list(map(str, message))[:NAMES_SHOWN]) or "none"
    return f"{place} has no {' or '.join(map(repr, keys))}; fields found: {found}"


def _first(message: dict[str, Any], keys: Sequence[str]) -> Any:
    """Returns the first value that is not null; Parquet gives every row both spellings where any row has them."""
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _spoken(content: Any, place: str) -> str:
    """Returns the words of a message: of OpenAI's parts the texts, of a tool call or an image nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, dict) for part in content):
        return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise _Unusable(f"the text of {place} is of type {type(content).__name__}, not a string")
