"""Conversations as the input of a run: read, and cut into windows, whoever writes about them.

In: rows, each a conversation, and how a text is measured in tokens. Out, in the run's journal folder:

    conversations.arrow   id, transcript, file, row   of every usable conversation
    entries.arrow         the windows of these        in the place of memory texts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from datasets import Dataset

from memvec.config.values import at_least, at_least_or_none, one_text, one_text_or_none
from memvec.data.dataset import AUTO, EntriesSummary
from memvec.data.rows import InputRows
from memvec.errors import ConfigError, InputError
from memvec.features import WINDOW_FEATURES
from memvec.files import atomic_file
from memvec.generation.transcript import Transcript, TranscriptSource
from memvec.generation.window import Span, cut_transcript
from memvec.layout import RunLayout
from memvec.schema import FILE, ID, PROVENANCE, ROW, TEXT
from memvec.streams import write_stream

WINDOWS_PER_BATCH = 1_000
NO_LIMIT = 2**31
Spans = Callable[[Sequence[str]], list[list[Span]]]


class Conversations:
    """Conversations, one row each.

    Args:
        rows: Where they lie; a `.txt` file is one document.
        messages_column: Name of the field with the messages, or with a document's text.
        date_column: Name of the field with the date; `auto` is `date`, where a row has one; None means no dates.
        window_tokens: Most tokens of conversation in a window; None is what the model has room for.
        overlap: Messages that neighbouring windows have in common.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        rows: InputRows,
        *,
        messages_column: str = "messages",
        date_column: str | None = AUTO,
        window_tokens: int | None = None,
        overlap: int = 2,
    ) -> None:
        self.rows = rows
        self.messages_column = one_text("data.messages_column", messages_column)
        self.date_column = one_text_or_none("data.date_column", date_column)
        self.window_tokens = at_least_or_none("data.window_tokens", window_tokens, 1)
        self.overlap = at_least("data.overlap", overlap, 0)
        for name in rows.keep_columns:
            if name.casefold() in PROVENANCE:
                found = f"{name!r} cannot be kept: every memory has a column of that name"
                raise ConfigError("data.keep_columns", found=found)

    @cached_property
    def sources(self) -> Sequence[TranscriptSource]:
        """What `data.path` names."""
        return [TranscriptSource(source, self.date_column) for source in self.rows.sources]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the windows: the input's content, and how it is read and cut."""
        return {
            **self.rows.fingerprint(self.sources, text_column=self.messages_column),
            "date_column": self.date_column,
            "window_tokens": self.window_tokens,
            "overlap": self.overlap,
        }

    def write_entries(self, folder: RunLayout, *, spans: Spans, room: int | None = None) -> EntriesSummary:
        """Reads the input, and writes the usable conversations, their windows and the rejected rows.

        Args:
            folder: The run's folder.
            spans: Returns where the tokens of each text stand, in characters.
            room: Most tokens of conversation that the model has room for; None is no limit.
        """
        summary = self.rows.write_entries(
            folder, self.sources, text_column=self.messages_column, entries_path=folder.conversations
        )
        if self.date_column not in (None, AUTO) and not any(source.has_dates for source in self.sources):
            found = f"no row has the date column {self.date_column!r}"
            advice = "set data.date_column to one that is there, or to null"
            raise InputError(", ".join(summary.files[:3]), found=found, advice=advice)
        limit = min(self.window_tokens or NO_LIMIT, room or NO_LIMIT)
        with atomic_file(folder.entries) as partial:
            write_stream(partial, self._windows(folder, spans, limit), schema=WINDOW_FEATURES.arrow_schema)
        has_columns = any(source.source.has_columns for source in self.sources)
        return summary if has_columns else replace(summary, ids="names of files")

    def _windows(self, folder: RunLayout, spans: Spans, limit: int) -> Iterator[pa.RecordBatch]:
        """Yields the windows of all conversations, in order."""
        rows: list[tuple[Any, ...]] = []
        for place, conversation in enumerate(Dataset.from_file(str(folder.conversations))):
            transcript = Transcript.from_json(conversation[TEXT])
            windows = cut_transcript(transcript, spans=spans, limit=limit, overlap=self.overlap)
            for number, window in enumerate(windows):
                rows.append(
                    (
                        f"{conversation[ID]}-{number}",
                        window.text,
                        conversation[FILE],
                        conversation[ROW],
                        place,
                        conversation[ID],
                        window.message_start,
                        window.message_end,
                        transcript.date,
                        list(window.speakers),
                    )
                )
            if len(rows) >= WINDOWS_PER_BATCH:
                yield pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=WINDOW_SCHEMA)
                rows = []
        if rows:
            yield pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=WINDOW_SCHEMA)


WINDOW_SCHEMA = WINDOW_FEATURES.arrow_schema
