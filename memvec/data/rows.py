"""The rows of an input: where they lie, and how they are read.

In: the options of the `data` group that memory texts and conversations have in common. Out: the sources, what of them
goes into a run's fingerprint, and usable rows on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from memvec.config.values import at_least_or_none, one_of, one_text_or_none
from memvec.data.dataset import AUTO, EntriesSummary, RecordSource, asked_column, write_entries
from memvec.data.formats.files import TextFormat
from memvec.data.given import GivenRows, source_of
from memvec.data.keeping import KeptColumns
from memvec.data.kept import names_to_keep
from memvec.data.source import Source, find_sources
from memvec.layout import RunLayout
from memvec.schema import ID


class InputRows:
    """Rows of files or datasets.

    Args:
        path: File, folder, glob, address or Hub dataset name, or a list of them; None with `given`.
        given: The rows themselves, where a program has them (`memvec.data.given.source_of`); None reads `path`.
        id_column: Name of the field with the id; `auto` is `id`, where the rows have one; None makes the row number
            the id.
        split: Split to read; None is `train` of a dataset with splits, and every file of a folder.
        revision: Revision of a Hub dataset.
        encoding: Of text files; None is UTF-8, or what a byte order mark says.
        delimiter: Of CSV files; None is found from each file's first records.
        on_error: Whether a row that cannot be used is named in `rejected.jsonl` (`reject`) or ends the run (`fail`).
        limit: Read at most this many rows.
        keep_columns: Names of further fields, which travel to the result.
        is_resumed: Whether a run is resumed that has read the input: then remote files need not be there any more.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        path: str | Sequence[str] | None,
        *,
        given: Any = None,
        id_column: str | None = AUTO,
        split: str | None = None,
        revision: str | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        on_error: Literal["reject", "fail"] = "reject",
        limit: int | None = None,
        keep_columns: Sequence[str] = (),
        is_resumed: bool = False,
    ) -> None:
        self.path = path
        self.given = given
        self.id_column = one_text_or_none("data.id_column", id_column)
        self.split = one_text_or_none("data.split", split)
        self.revision = revision
        self.text_format = TextFormat(encoding, delimiter)
        self.on_error: Literal["reject", "fail"] = one_of("data.on_error", on_error, ("reject", "fail"))
        self.limit = at_least_or_none("data.limit", limit, 1)
        self.keep_columns = names_to_keep(keep_columns)
        self.is_resumed = is_resumed

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

    def fingerprint(self, sources: Sequence[RecordSource], *, text_column: str) -> dict[str, Any]:
        """Returns what decides the rows: their content, and how they are read.

        Args:
            sources: Where they come from.
            text_column: Name of the field with the text.
        """
        columns = (text_column, asked_column(self.id_column, ID), *self.keep_columns)
        # A run that keeps no column is the same run as before there was this option.
        kept = {"keep_columns": list(self.keep_columns)} if self.keep_columns else {}
        return {
            "input": [source.digest(columns=columns) for source in sources],
            "text_column": text_column,
            "id_column": self.id_column,
            **asdict(self.text_format),
            "limit": self.limit,
            "on_error": self.on_error,
            **kept,
        }

    def write_entries(
        self, folder: RunLayout, sources: Sequence[RecordSource], *, text_column: str, entries_path: Path
    ) -> EntriesSummary:
        """Reads the rows and writes the usable ones, what is kept of them, and the rejected ones.

        Args:
            folder: The run's folder.
            sources: Where the rows come from.
            text_column: Name of the field with the text.
            entries_path: Where in that folder the usable rows go.
        """
        return write_entries(
            sources,
            entries_path=entries_path,
            rejected_path=folder.input_rejected,
            kept=KeptColumns(self.keep_columns, folder.kept),
            text_column=text_column,
            id_column=self.id_column,
            on_error=self.on_error,
            limit=self.limit,
        )
