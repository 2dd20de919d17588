"""Tokenises the entries into a second memory-mapped `Dataset`, row by row the same.

In: `entries.arrow` and a `PromptEncoder`. Out: `prompts.arrow` with the columns of `memvec.features.PROMPT_FEATURES`.

How: `Dataset.map` on Arrow tables, thousands of rows at a time, so that the Rust tokenizer works on all cores and
writing to disk costs no Python object a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from memvec.features import PROMPT_FEATURES
from memvec.prompt.encoder import PromptEncoder
from memvec.schema import DIGEST, INPUT_IDS, LENGTH, SHARED, TEXT, TRUNCATED

ROWS_PER_MAP = 4096
# Tokenising so few takes a second or two, and a bar says no more than the silence.
ROWS_WITHOUT_BAR = 50_000


def tokenise(entries_path: Path, prompts_path: Path, encoder: PromptEncoder) -> Dataset:
    """Writes the tokenised prompts of all entries, or takes those that are there.

    Args:
        entries_path: What `memvec.data.dataset.write_entries` wrote.
        prompts_path: Where the prompts go; the file appears whole or not at all.
        encoder: Makes a text a prompt.

    Raises:
        InputError: Not one token is left of a prompt.
    """

    def encode_table(table: pa.Table) -> pa.Table:
        encoded = encoder.encode(table.column(TEXT).to_pylist())
        columns = {
            INPUT_IDS: pa.ListArray.from_arrays(encoded.offsets.astype(np.int32), encoded.input_ids),
            LENGTH: np.diff(encoded.offsets).astype(np.int32),
            SHARED: encoded.shared,
            TRUNCATED: encoded.truncated,
            DIGEST: pa.FixedSizeListArray.from_arrays(encoded.digests.reshape(-1), 2),
        }
        return pa.table(columns, schema=PROMPT_FEATURES.arrow_schema)

    entries = Dataset.from_file(str(entries_path)).select_columns([TEXT])
    with nullcontext() if len(entries) > ROWS_WITHOUT_BAR else without_progress_bars():
        return entries.with_format("arrow").map(
            encode_table,
            batched=True,
            batch_size=ROWS_PER_MAP,
            features=PROMPT_FEATURES,
            cache_file_name=str(prompts_path),
            # Given, since the library's own misses changes in what the function calls; the run's fingerprint has them.
            new_fingerprint=prompts_path.stem,
            desc="tokenise",
        )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps `datasets` from drawing progress bars."""
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


def prompt_digests(prompts: Dataset) -> NDArray[np.uint64]:
    """Returns the digests of all prompts, `[N, 2]` uint64."""
    chunks = [chunk.flatten().to_numpy() for chunk in prompts.data.column(DIGEST).chunks]
    return np.concatenate(chunks).reshape(-1, 2)
