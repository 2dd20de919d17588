"""The prepared files of a run: what is made of the input before anything is computed, and which rows are left.

In: what writes the usable rows of the input, and a prompt encoder. Out: files in the run's journal folder:

    entries.arrow        id, text, file, row                of every usable row
    prompts.arrow        input_ids, length, …               row by row the same
    first_rows.npy       for every row the first with an equal prompt, which alone is computed
    remaining_rows.npy   the rows to compute in this attempt: those first rows, less what the journal holds

How: one process prepares, each file once in a run; every process of the run then maps the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from memvec.data.dataset import EntriesSummary
from memvec.data.tokenise import prompt_digests, tokenise
from memvec.digest import as_pairs, digest, first_occurrence
from memvec.files import atomic_file, write_json
from memvec.layout import RunLayout
from memvec.prompt.encoder import PromptEncoder
from memvec.schema import TEXT


class PreparedRows:
    """The prepared files of a run's folder.

    Args:
        folder: The run's folder.
        encoder: Makes a text a prompt; None where texts are not tokenised here: then equal texts are computed once.
        write_entries: Reads the input and writes the usable rows and the rejected ones.
    """

    def __init__(
        self, folder: RunLayout, *, encoder: PromptEncoder | None, write_entries: Callable[[], EntriesSummary]
    ) -> None:
        self.folder = folder
        self.encoder = encoder
        self.write_entries = write_entries

    def prepare(self) -> None:
        """Makes the files that are not there yet."""
        if not self.folder.input_summary.exists():
            write_json(self.folder.input_summary, asdict(self.write_entries()))
        digests = self._text_digests
        if self.encoder is not None:
            prompts = tokenise(self.folder.entries, self.folder.prompts, self.encoder)
            digests = partial(prompt_digests, prompts)
        if not self.folder.first_rows.exists():
            _save(self.folder.first_rows, first_occurrence(digests()))

    def _text_digests(self) -> NDArray[np.uint64]:
        """Returns the digests of the entries' texts, `[N, 2]`."""
        texts = Dataset.from_file(str(self.folder.entries)).data.column(TEXT)
        return as_pairs(b"".join(digest(text.as_py().encode()) for text in texts))

    def find_remaining(self, is_done: Callable[[int], NDArray[np.bool_]]) -> None:
        """Finds the rows that are left to compute: the first of equal prompts, less what is done.

        Args:
            is_done: Returns for so many rows, `[N]` bool, whether the journal has all there will be.
        """
        first = np.load(self.folder.first_rows, mmap_mode="r")
        is_left = (first == np.arange(len(first))) & ~is_done(len(first))
        _save(self.folder.remaining_rows, np.flatnonzero(is_left))

    def count_remaining(self) -> int:
        """Returns how many rows are left to compute."""
        return len(np.load(self.folder.remaining_rows, mmap_mode="r"))


def _save(path: Path, rows: NDArray[np.int64]) -> None:
    with atomic_file(path) as part, part.open("wb") as stream:
        np.save(stream, rows)
