"""Conversations as the input of a run: read, and cut into windows, whoever writes about them.

In: `data.*` of the configuration, and how a text is measured in tokens. Out, in the run's journal folder:

    conversations.arrow   id, transcript, file, row   of every usable conversation
    entries.arrow         the windows of these        in the place of memory texts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset

from memvec.config.values import at_least, at_least_or_none, one_of, one_text, one_text_or_none
from memvec.data.dataset import AUTO, EntriesSummary, asked_column, write_entries, write_stream
from memvec.data.formats.files import TextFormat
from memvec.data.source import find_sources
from memvec.errors import InputError
from memvec.features import WINDOW_FEATURES
from memvec.files import atomic_file
from memvec.generation.transcript import Transcript, TranscriptSource
from memvec.generation.window import Span, cut_transcript
from memvec.layout import RunLayout
from memvec.schema import FILE, ID, ROW, TEXT

WINDOWS_PER_BATCH = 1_000
NO_LIMIT = 2**31
Spans = Callable[[Sequence[str]], list[list[Span]]]


class Conversations:
    """Conversations, one row each.

    Args:
        path: File, folder, glob or Hub dataset name with one row a conversation, or a list of them; a `.txt` file is
            one document.
        messages_column: Name of the field with the messages, or with a document's text.
        id_column: Name of the field with the id; `auto` is `id`, where the rows have one; None makes the row number
            the id.
        date_column: Name of the field with the date; `auto` is `date`, where a row has one; None means no dates.
        split: Split to read; None is `train` of a dataset with splits, and every file of a folder.
        revision: Revision of a Hub dataset.
        encoding: Of text files; None is UTF-8, or what a byte order mark says.
        delimiter: Of CSV files; None is found from each file's first records.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many conversations.
        window_tokens: Most tokens of conversation in a window; None is what the model has room for.
        overlap: Messages that neighbouring windows have in common.
        is_resumed: Whether a run goes on that has read the input before: then remote files need not be there any more.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        messages_column: str = "messages",
        id_column: str | None = AUTO,
        date_column: str | None = AUTO,
        split: str | None = None,
        revision: str | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        window_tokens: int | None = None,
        overlap: int = 2,
        is_resumed: bool = False,
    ) -> None:
        self.path = path
        self.messages_column = one_text("data.messages_column", messages_column)
        self.id_column = one_text_or_none("data.id_column", id_column)
        self.date_column = one_text_or_none("data.date_column", date_column)
        self.split = one_text_or_none("data.split", split)
        self.revision = revision
        self.text_format = TextFormat(encoding, delimiter)
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.is_resumed = is_resumed
        self.window_tokens = at_least_or_none("data.window_tokens", window_tokens, 1)
        self.overlap = at_least("data.overlap", overlap, 0)

    @cached_property
    def sources(self) -> Sequence[TranscriptSource]:
        """What `data.path` names."""
        found = find_sources(
            self.path,
            split=self.split,
            revision=self.revision,
            text_format=self.text_format,
            is_resumed=self.is_resumed,
        )
        return [TranscriptSource(source, self.date_column) for source in found]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the windows: the input's content, and how it is read and cut."""
        columns = (self.messages_column, asked_column(self.id_column, ID))
        return {
            "input": [source.digest(columns=columns) for source in self.sources],
            "text_column": self.messages_column,
            "id_column": self.id_column,
            **asdict(self.text_format),
            "limit": self.limit,
            "on_error": self.on_error,
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
        summary = write_entries(
            self.sources,
            entries_path=folder.conversations,
            rejected_path=folder.input_rejected,
            text_column=self.messages_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
        if self.date_column not in (None, AUTO) and not any(source.has_dates for source in self.sources):
            raise InputError(
                f"{', '.join(summary.files[:3])}: no row has the date column {self.date_column!r}; "
                "set data.date_column to one that is there, or to null"
            )
        limit = min(self.window_tokens or NO_LIMIT, room or NO_LIMIT)
        with atomic_file(folder.entries) as partial:
            write_stream(partial, self._windows(folder, spans, limit), schema=WINDOW_FEATURES.arrow_schema)
        has_columns = any(source.source.has_columns for source in self.sources)
        return summary if has_columns else replace(summary, ids="names of files")

    def _windows(self, folder: RunLayout, spans: Spans, limit: int) -> Iterator[pa.RecordBatch]:
        """Yields the windows of all conversations, in order."""
        rows: list[tuple[Any, ...]] = []
        for conversation in Dataset.from_file(str(folder.conversations)):
            transcript = Transcript.from_json(conversation[TEXT])
            windows = cut_transcript(transcript, spans=spans, limit=limit, overlap=self.overlap)
            for number, window in enumerate(windows):
                rows.append(
                    (
                        f"{conversation[ID]}-{number}",
                        window.text,
                        conversation[FILE],
                        conversation[ROW],
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
