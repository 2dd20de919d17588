"""Memory texts as the input of a run: where they lie, which prompt they are put into, how they become batches.

In: `data.*` of the configuration, a prompt and a tokenizer. Out: what `memvec.data.datamodule` serves from: usable rows
on disk, an encoder for their prompts, and the rules of their batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from memvec.config.values import at_least, at_least_or_none, one_of, one_text, one_text_or_none
from memvec.data.dataset import AUTO, EntriesSummary, asked_column, write_entries
from memvec.data.formats.files import TextFormat
from memvec.data.given import GivenRows, source_of
from memvec.data.rules import BatchRules
from memvec.data.source import Source, find_sources
from memvec.layout import RunLayout
from memvec.prompt.encoder import PromptEncoder, text_limit
from memvec.prompt.template import Prompt
from memvec.schema import ID


class MemoryTexts:
    """Memory texts, one row an entry.

    Args:
        path: File, folder, glob, address or Hub dataset name with one row an entry, or a list of them; None with
            `given`.
        prompt: The prompt each text is put into.
        tokenizer: The model's tokenizer.
        model_limit: Most tokens the model takes; None is no limit.
        vocabulary: How many tokens the model has embeddings for; None is not known.
        given: The rows themselves, where a program has them (`memvec.data.given.source_of`); None reads `path`.
        text_column: Name of the field with the text.
        id_column: Name of the field with the id; `auto` is `id`, where the rows have one; None makes the row number
            the id.
        split: Split to read; None is `train` of a dataset with splits, and every file of a folder.
        revision: Revision of a Hub dataset.
        encoding: Of text files; None is UTF-8, or what a byte order mark says.
        delimiter: Of CSV files; None is found from each file's first records.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many rows.
        batch_size: Most entries in a batch.
        max_tokens: Most tokens in a batch, padding included, shared prefix not; None chooses by the device, `auto`
            tries several on real rows.
        max_length: Most tokens in one prompt; None is the model's own limit.
        num_workers: Processes that build batches; 0 builds them in the predicting process, which rarely waits for them.
        is_resumed: Whether a run goes on that has read the input before: then remote files need not be there any more.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        path: str | Sequence[str] | None,
        *,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerFast,
        model_limit: int | None,
        vocabulary: int | None = None,
        given: Any = None,
        text_column: str = "text",
        id_column: str | None = AUTO,
        split: str | None = None,
        revision: str | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        batch_size: int = 1024,
        max_tokens: int | Literal["auto"] | None = None,
        max_length: int | None = None,
        num_workers: int = 0,
        is_resumed: bool = False,
    ) -> None:
        self.path = path
        self.given = given
        self.text_column = one_text("data.text_column", text_column)
        self.id_column = one_text_or_none("data.id_column", id_column)
        self.split = one_text_or_none("data.split", split)
        self.revision = revision
        self.text_format = TextFormat(encoding, delimiter)
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.rules = BatchRules(batch_size=batch_size, max_tokens=max_tokens)
        self.num_workers = at_least("data.num_workers", num_workers, 0)
        self.is_resumed = is_resumed
        self.encoder = PromptEncoder(
            tokenizer, prompt, max_length=text_limit(max_length, model_limit), vocabulary=vocabulary
        )

    @cached_property
    def sources(self) -> Sequence[Source | GivenRows]:
        """What a program has given, or `data.path` names."""
        if self.given is not None:
            return [source_of(self.given, split=self.split)]
        return find_sources(
            self.path or "",
            split=self.split,
            revision=self.revision,
            text_format=self.text_format,
            is_resumed=self.is_resumed,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run: the input's content and how it is read and tokenised."""
        columns = (self.text_column, asked_column(self.id_column, ID))
        return {
            "input": [source.digest(columns=columns) for source in self.sources],
            "text_column": self.text_column,
            "id_column": self.id_column,
            **asdict(self.text_format),
            "limit": self.limit,
            "on_error": self.on_error,
            **self.encoder.fingerprint(),
        }

    def write_entries(self, folder: RunLayout) -> EntriesSummary:
        """Reads the input and writes the usable rows, and the rejected ones."""
        return write_entries(
            self.sources,
            entries_path=folder.entries,
            rejected_path=folder.input_rejected,
            text_column=self.text_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
