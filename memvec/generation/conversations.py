"""Conversations as the input of a run: cut into windows, each of which becomes a prompt.

In: `data.*` of the configuration, a prompt and a tokenizer. Out: what `memvec.data.datamodule` serves from. A row is a
window of a conversation, which grows by what may be written to it. What is written to the run's journal folder besides:

    conversations.arrow   id, transcript, file, row   of every usable conversation
    entries.arrow         the windows of these        in the place of memory texts
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from memvec.config.values import at_least, at_least_or_none, one_of
from memvec.data.dataset import EntriesSummary, write_entries, write_stream
from memvec.data.rules import BatchRules
from memvec.data.source import find_sources
from memvec.errors import ConfigError
from memvec.features import WINDOW_FEATURES
from memvec.files import atomic_file
from memvec.generation.prompt import MemoryPrompt
from memvec.generation.transcript import Transcript, TranscriptSource
from memvec.generation.window import cut_transcript
from memvec.layout import RunLayout
from memvec.prompt.encoder import PromptEncoder
from memvec.schema import FILE, ID, ROW, TEXT

WINDOWS_PER_BATCH = 1_000
NO_LIMIT = 2**31


class Conversations:
    """Conversations, one row each.

    Args:
        path: File, folder, glob or Hub dataset name with one row a conversation, or a list of them; a `.txt` file is
            one document.
        prompt: What the model is asked about each window.
        tokenizer: The model's tokenizer.
        model_limit: Most tokens the model takes, those it writes counted; None is no limit.
        output_tokens: Most tokens the model writes about a window.
        messages_column: Name of the field with the messages, or with a document's text.
        id_column: Name of the field with the id; None, or a name no row has, makes the row number the id.
        date_column: Name of the field with the date; None, or a name no row has, means that there are no dates.
        split: Split of a dataset with splits.
        revision: Revision of a Hub dataset.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many conversations.
        window_tokens: Most tokens of conversation in a window; None is what the model has room for.
        overlap: Messages that neighbouring windows have in common.
        batch_size: Most windows in a batch.
        max_tokens: Most tokens in a batch, padding, output and shared prefix included; None is as many as have room for
            their keys and values in 2 GiB, or in two fifths of what is free on an accelerator.
        num_workers: Processes that build batches; 0 builds them in the predicting process, which rarely waits for them.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        prompt: MemoryPrompt,
        tokenizer: PreTrainedTokenizerFast,
        model_limit: int | None,
        output_tokens: int,
        messages_column: str = "messages",
        id_column: str | None = "id",
        date_column: str | None = "date",
        split: str = "train",
        revision: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        window_tokens: int | None = None,
        overlap: int = 2,
        batch_size: int = 256,
        max_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if model_limit is not None and output_tokens >= model_limit:
            raise ConfigError(
                f"generation.max_new_tokens={output_tokens}: the model takes {model_limit} tokens, the prompt included"
            )
        self.path = path
        self.messages_column = messages_column
        self.id_column = id_column
        self.date_column = date_column
        self.split = split
        self.revision = revision
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.window_tokens = at_least_or_none("data.window_tokens", window_tokens, 1)
        self.overlap = at_least("data.overlap", overlap, 0)
        self.rules = BatchRules(batch_size=batch_size, max_tokens=max_tokens, output_tokens=output_tokens)
        self.num_workers = at_least("data.num_workers", num_workers, 0)
        self.prompt = prompt
        max_length = None if model_limit is None else model_limit - output_tokens
        self.encoder = PromptEncoder(tokenizer, prompt.to_prompt(), max_length=max_length)

    @cached_property
    def sources(self) -> Sequence[TranscriptSource]:
        """What `data.path` names."""
        found = find_sources(self.path, split=self.split, revision=self.revision)
        return [TranscriptSource(source, self.date_column) for source in found]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run."""
        return {
            "input": [source.digest(columns=(self.messages_column, self.id_column)) for source in self.sources],
            "text_column": self.messages_column,
            "id_column": self.id_column,
            "limit": self.limit,
            "on_error": self.on_error,
            **self.encoder.fingerprint(),
            **self.prompt.fingerprint(),
            "date_column": self.date_column,
            "window_tokens": self.window_tokens,
            "overlap": self.overlap,
        }

    def write_entries(self, folder: RunLayout) -> EntriesSummary:
        """Reads the input, and writes the usable conversations, their windows and the rejected rows."""
        summary = write_entries(
            self.sources,
            entries_path=folder.conversations,
            rejected_path=folder.input_rejected,
            text_column=self.messages_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
        with atomic_file(folder.entries) as partial:
            write_stream(partial, self._windows(folder), schema=WINDOW_FEATURES.arrow_schema)
        return summary

    def _windows(self, folder: RunLayout) -> Iterator[pa.RecordBatch]:
        """Yields the windows of all conversations, in order."""
        limit = min(self.window_tokens or NO_LIMIT, self.encoder.room or NO_LIMIT)
        rows: list[tuple[Any, ...]] = []
        for conversation in Dataset.from_file(str(folder.conversations)):
            transcript = Transcript.from_json(conversation[TEXT])
            windows = cut_transcript(transcript, spans=self.encoder.spans, limit=limit, overlap=self.overlap)
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
