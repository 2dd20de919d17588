"""Tokenises the entries into a second memory-mapped `Dataset`, row by row the same.

In: `entries.arrow` and a `PromptEncoder`. Out: `prompts.arrow` with the columns of `memvec.features.PROMPT_FEATURES`.

How: thousands of rows at a time, as Arrow tables, so that the Rust tokenizer works on all cores and writing to disk
costs no Python object a row. Not `Dataset.map`, which leaves its file to the operating system to bring to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.utils import tqdm
from numpy.typing import NDArray

from memvec.features import PROMPT_FEATURES
from memvec.files import atomic_file
from memvec.prompt.encoder import PromptEncoder
from memvec.schema import DIGEST, INPUT_IDS, LENGTH, SHARED, TEXT, TRUNCATED
from memvec.streams import write_stream

ROWS_PER_BATCH = 4096
# Tokenising so few takes a second or two, and a bar says no more than the silence.
ROWS_WITHOUT_BAR = 50_000


def tokenise(entries_path: Path, prompts_path: Path, encoder: PromptEncoder) -> None:
    """Writes the tokenised prompts of all entries.

    Args:
        entries_path: What `memvec.data.dataset.write_entries` wrote.
        prompts_path: Where the prompts go; the file appears whole or not at all.
        encoder: Makes a text a prompt.

    Raises:
        InputError: Not one token is left of a prompt.
    """
    entries = Dataset.from_file(str(entries_path)).select_columns([TEXT]).with_format("arrow")
    with (
        atomic_file(prompts_path) as partial,
        tqdm(total=len(entries), desc="tokenise", disable=len(entries) <= ROWS_WITHOUT_BAR) as bar,
    ):
        write_stream(partial, _prompts(entries, encoder, bar), schema=PROMPT_FEATURES.arrow_schema)


def _prompts(entries: Dataset, encoder: PromptEncoder, bar: tqdm) -> Iterator[pa.RecordBatch]:
    """Yields the prompts of all entries in order, and says so to a progress bar."""
    for table in entries.iter(ROWS_PER_BATCH):
        encoded = encoder.encode(table.column(TEXT).to_pylist())
        columns = {
            INPUT_IDS: pa.ListArray.from_arrays(encoded.offsets.astype(np.int32), encoded.input_ids),
            LENGTH: np.diff(encoded.offsets).astype(np.int32),
            SHARED: encoded.shared,
            TRUNCATED: encoded.truncated,
            DIGEST: pa.FixedSizeListArray.from_arrays(encoded.digests.reshape(-1), 2),
        }
        yield pa.record_batch(columns, schema=PROMPT_FEATURES.arrow_schema)
        bar.update(table.num_rows)


def prompt_digests(prompts: pa.Table) -> NDArray[np.uint64]:
    """Returns the digests of all prompts of a table, `[N, 2]` uint64."""
    chunks = [chunk.flatten().to_numpy() for chunk in prompts.column(DIGEST).chunks]
    return np.concatenate(chunks).reshape(-1, 2)
