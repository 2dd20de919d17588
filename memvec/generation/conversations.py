"""Conversations as windows on disk, whoever writes about them.

In: `data.*` of the configuration, and how a text is measured in tokens. Out, in the run's journal folder:

    conversations.arrow   id, transcript, file, row   of every usable conversation
    entries.arrow         the windows of these        in the place of memory texts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset

from memvec.config.values import at_least, at_least_or_none, one_of
from memvec.data.dataset import EntriesSummary, write_entries, write_stream
from memvec.data.source import find_sources
from memvec.files import atomic_file
from memvec.generation.transcript import Transcript, TranscriptSource
from memvec.generation.window import Span, cut_transcript
from memvec.layout import RunLayout
from memvec.schema import FILE, ID, ROW, TEXT, WINDOW_FEATURES

WINDOWS_PER_BATCH = 1_000
WINDOW_SCHEMA = WINDOW_FEATURES.arrow_schema
NO_LIMIT = 2**31


class Conversations:
    """Reads conversations and cuts them into windows.

    Args:
        path: File, folder, glob or Hub dataset name with one row a conversation, or a list of them; a `.txt` file is
            one document.
        folder: The run's folder.
        messages_column: Name of the field with the messages, or with a document's text.
        id_column: Name of the field with the id; None, or a name no row has, makes the row number the id.
        date_column: Name of the field with the date; None, or a name no row has, means that there are no dates.
        split: Split of a dataset with splits.
        revision: Revision of a Hub dataset.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many conversations.
        window_tokens: Most tokens of conversation in a window; None is what the model has room for.
        overlap: Messages that neighbouring windows have in common.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        folder: RunLayout,
        messages_column: str = "messages",
        id_column: str | None = "id",
        date_column: str | None = "date",
        split: str = "train",
        revision: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        window_tokens: int | None = None,
        overlap: int = 2,
    ) -> None:
        self.path = path
        self.folder = folder
        self.messages_column = messages_column
        self.id_column = id_column
        self.date_column = date_column
        self.split = split
        self.revision = revision
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.window_tokens = at_least_or_none("data.window_tokens", window_tokens, 1)
        self.overlap = at_least("data.overlap", overlap, 0)

    @cached_property
    def sources(self) -> Sequence[TranscriptSource]:
        """What `data.path` names."""
        found = find_sources(self.path, split=self.split, revision=self.revision)
        return [TranscriptSource(source, self.date_column) for source in found]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the windows: the input's content, and how it is read and cut."""
        columns = (self.messages_column, self.id_column)
        return {
            "input": [source.digest(columns=columns) for source in self.sources],
            "text_column": self.messages_column,
            "id_column": self.id_column,
            "limit": self.limit,
            "date_column": self.date_column,
            "window_tokens": self.window_tokens,
            "overlap": self.overlap,
        }

    def write(self, *, spans: Callable[[Sequence[str]], list[list[Span]]], room: int | None = None) -> EntriesSummary:
        """Reads the conversations and writes them and their windows.

        Args:
            spans: Returns where the tokens of each text stand, in characters.
            room: Most tokens of conversation that the model has room for; None is no limit.
        """
        summary = write_entries(
            self.sources,
            entries_path=self.folder.conversations,
            rejected_path=self.folder.input_rejected,
            text_column=self.messages_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
        limit = min(self.window_tokens or NO_LIMIT, room or NO_LIMIT)
        with atomic_file(self.folder.entries) as partial:
            write_stream(partial, self._windows(spans, limit), schema=WINDOW_SCHEMA)
        return summary

    def _windows(self, spans: Callable[[Sequence[str]], list[list[Span]]], limit: int) -> Iterator[pa.RecordBatch]:
        """Yields the windows of all conversations, in order."""
        rows: list[tuple[Any, ...]] = []
        for conversation in Dataset.from_file(str(self.folder.conversations)):
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
                yield _batch(rows)
                rows = []
        if rows:
            yield _batch(rows)


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=WINDOW_SCHEMA)
