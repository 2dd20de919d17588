"""The LightningDataModule of generation: from conversations to left-padded batches of this rank.

In: `data.*` of the configuration, a prompt and a tokenizer. Out: batches as `memvec.data.datamodule` makes them; what
differs is that a row is a window of a conversation, that padding stands on the left, and that a row costs what may be
written to it too. What is written to the run's journal folder besides:

    conversations.arrow   id, transcript, file, row   of every usable conversation
    entries.arrow         the windows of these        in the place of memory texts

A row is computed once, and once more where its output could not be understood: that is the second attempt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from memvec.config.values import at_least, at_least_or_none, one_text_or_none
from memvec.data.collator import Batch
from memvec.data.datamodule import MemoryDataModule
from memvec.data.dataset import AUTO, EntriesSummary, write_entries, write_stream
from memvec.data.source import find_sources
from memvec.errors import ConfigError, InputError
from memvec.files import atomic_file
from memvec.generation.module import GenerationModule
from memvec.generation.outputs import read_outputs
from memvec.generation.prompt import MemoryPrompt
from memvec.generation.transcript import Transcript, TranscriptSource
from memvec.generation.window import cut_transcript
from memvec.layout import RunLayout
from memvec.schema import FILE, ID, ROW, TEXT, WINDOW_FEATURES

# Rows decode together, and the more of them, the less each costs: a batch is as large as its keys and values may be.
CACHE_BYTES_ON_CPU = 2 * 2**30
CACHE_SHARE_OF_FREE_MEMORY = 0.4  # of an accelerator's, with the weights on it
ROWS_TO_MEASURE = 2
WINDOWS_PER_BATCH = 1_000
NO_LIMIT = 2**31


class ConversationDataModule(MemoryDataModule):
    """Reads, cuts, tokenises and batches conversations.

    Args:
        path: File, folder, glob or Hub dataset name with one row a conversation, or a list of them; a `.txt` file is
            one document.
        prompt: What the model is asked about each window.
        tokenizer: The model's tokenizer.
        model_limit: Most tokens the model takes, those it writes counted; None is no limit.
        output_tokens: Most tokens the model writes about a window.
        folder: The run's folder.
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
        folder: RunLayout,
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
        batch_size: int = 256,
        max_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if model_limit is not None and output_tokens >= model_limit:
            raise ConfigError(
                f"generation.max_new_tokens={output_tokens}: the model takes {model_limit} tokens, the prompt included"
            )
        at_least_or_none("data.max_tokens", max_tokens, 1)  # nothing is tried here: what an output costs is not known
        super().__init__(
            path,
            prompt=prompt.to_prompt(),
            tokenizer=tokenizer,
            model_limit=None if model_limit is None else model_limit - output_tokens,
            folder=folder,
            text_column=messages_column,
            id_column=id_column,
            split=split,
            revision=revision,
            encoding=encoding,
            delimiter=delimiter,
            on_error=on_error,
            limit=limit,
            batch_size=batch_size,
            max_tokens=max_tokens,
            num_workers=num_workers,
        )
        self.prompt = prompt
        self.date_column = one_text_or_none("data.date_column", date_column)
        self.window_tokens = at_least_or_none("data.window_tokens", window_tokens, 1)
        self.overlap = at_least("data.overlap", overlap, 0)
        self.output_tokens = output_tokens  # what a row grows by while it is computed
        self.padding_side = "left"
        self.shortest_in_batch = 0.0  # a batch's tokens are written in as many steps, whatever its prompts' lengths

    @cached_property
    def sources(self) -> Sequence[TranscriptSource]:
        """What `data.path` names."""
        found = find_sources(self.path, split=self.split, revision=self.revision, text_format=self.text_format)
        return [TranscriptSource(source, self.date_column) for source in found]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run."""
        return {
            **super().fingerprint(),
            **self.prompt.fingerprint(),
            "date_column": self.date_column,
            "window_tokens": self.window_tokens,
            "overlap": self.overlap,
        }

    def typical_batch(self, *, tokens: int = ROWS_TO_MEASURE) -> Batch | None:
        """Returns two of the shorter rows of this rank's plan, to measure on; None where it has none."""
        batches = self.sampler.batches if self.sampler is not None else []
        return self.batches.of(batches[len(batches) // 2][-ROWS_TO_MEASURE:]) if batches else None

    def _write_entries(self) -> EntriesSummary:
        summary = write_entries(
            self.sources,
            entries_path=self.folder.conversations,
            rejected_path=self.folder.input_rejected,
            text_column=self.text_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
        if self.date_column not in (None, AUTO) and not any(source.has_dates for source in self.sources):
            raise InputError(
                f"{', '.join(summary.files[:3])}: no row has the date column {self.date_column!r}; "
                "set data.date_column to one that is there, or to null"
            )
        with atomic_file(self.folder.entries) as partial:
            write_stream(partial, self._windows(), schema=WINDOW_FEATURES.arrow_schema)
        has_columns = any(source.source.has_columns for source in self.sources)
        return summary if has_columns else replace(summary, ids="names of files")

    def _windows(self) -> Iterator[pa.RecordBatch]:
        """Yields the windows of all conversations, in order."""
        limit = min(self.window_tokens or NO_LIMIT, self.encoder.room or NO_LIMIT)
        rows: list[tuple[Any, ...]] = []
        for conversation in Dataset.from_file(str(self.folder.conversations)):
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

    def _done(self, rows: int) -> NDArray[np.bool_]:
        return read_outputs(self.folder.journal, rows=rows).is_done(self.attempt)

    def row_tokens(self, lengths: NDArray[np.int32], prefix_length: int) -> NDArray[np.int32]:
        """Returns the tokens whose keys and values a row holds in the end: its own copy of the shared prefix too."""
        return lengths + self.output_tokens

    def default_budget(self, on_accelerator: bool) -> int:
        """Returns the most tokens in a batch: as many as memory has room for keys and values of."""
        device = self._trainer().strategy.root_device
        free = CACHE_BYTES_ON_CPU
        if device.type == "cuda":
            free = int(torch.cuda.mem_get_info(device)[0] * CACHE_SHARE_OF_FREE_MEMORY)
        module = cast(GenerationModule, self._trainer().lightning_module)
        return max(1, free // module.cache_bytes_per_token())


WINDOW_SCHEMA = WINDOW_FEATURES.arrow_schema
