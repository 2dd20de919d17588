"""Turns a complete journal into the result: Parquet files in input order, then the manifest.

In: the journal, and the entries it was computed for. Out: `vectors/*.parquet`, `rejected.jsonl`.

How: every row's vector is found through the journal's index and copied from the mapped file; rows with an equal prompt
share one. The Parquet files are dealt to the ranks, each is written under another name and renamed, and one that is
there already and says that it holds the same rows is left: finalising can be killed at any instruction and done again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from memvec.data.kept import KeptRows
from memvec.data.prepared import read_signature
from memvec.data.tokenise import prompt_digests
from memvec.data.validation import Rejection
from memvec.digest import as_hex, digest
from memvec.errors import WriterError
from memvec.features import vector_features
from memvec.files import atomic_file, make_folder, read_json, writing
from memvec.layout import RunLayout
from memvec.schema import (
    DIGEST,
    FILE,
    ID,
    LENGTH,
    NUM_TOKENS,
    PROMPT_DIGEST,
    ROW,
    TEXT,
    TRUNCATED,
    is_vector_column,
    vector_columns,
)
from memvec.writer.vectors import read_journal

BYTES_PER_FILE = 256 * 2**20
PARTS = "part-*.parquet"
# Where a part says in its footer which rows it holds.
ROWS_KEY = b"memvec.rows"
ROWS_PER_GROUP = 5_000


@dataclass(frozen=True)
class Counts:
    """What became of the rows.

    Args:
        entries: Rows with a vector.
        rejected: Rows without, in the input or later.
        truncated: Entries whose text lost its end.
        unique: Different prompts among the entries: so many vectors were computed.
        dimension: D, of each layer.
    """

    entries: int
    rejected: int
    truncated: int
    unique: int
    dimension: int


class Finalizer:
    """Everything the last stage needs to know, read once.

    Args:
        folder: The run's folder; every row of it is in the journal.
        layer: The layer, or layers, that the journal's vectors are of, one behind the other.
        keep_text: Whether the result has a `text` column.

    Raises:
        WriterError: Rows are missing from the journal, or no row has a vector.
    """

    def __init__(self, folder: RunLayout, *, layer: int | Sequence[int] = -1, keep_text: bool = True) -> None:
        self.folder = folder
        self.columns = list(vector_columns(layer).values())
        self.keep_text = keep_text
        self.summary = read_json(folder.input_summary)
        self.entries = Dataset.from_file(str(folder.entries)).with_format("arrow")
        self.kept_columns = KeptRows(folder.kept)
        prompts = Dataset.from_file(str(folder.prompts))
        self.digests = prompts.select_columns([DIGEST]).with_format("arrow")
        self.lengths: NDArray[np.int32] = prompts.data.column(LENGTH).to_numpy()
        self.truncated: NDArray[np.bool_] = prompts.data.column(TRUNCATED).to_numpy()
        self.first: NDArray[np.int64] = np.load(folder.first_rows)
        self.signature = read_signature(folder)
        self.journal = read_journal(folder.journal, rows=len(self.first), signature=self.signature)
        self.dimension = self.journal.dimension // len(self.columns)
        missing = int((~self.journal.is_done[self.first]).sum())
        if missing:
            found = f"{missing} of {len(self.first)} entries have no vector yet"
            raise WriterError(folder.root, found=found, advice="run the same command again to resume")
        self.kept = np.flatnonzero(self.journal.has_vector[self.first])
        if len(self.kept) == 0:
            raise WriterError(folder.root, found=f"no entry has a vector: {next(iter(self.journal.reasons.values()))}")

    @property
    def counts(self) -> Counts:
        """What became of the rows."""
        return Counts(
            entries=len(self.kept),
            rejected=self.summary["rejected"] + len(self.first) - len(self.kept),
            truncated=int(self.truncated[self.kept].sum()),
            unique=len(np.unique(self.first[self.kept])),
            dimension=self.dimension,
        )

    def notes(self) -> dict[str, Any]:
        """Returns how many of the vectors were copied from which finished run, for the manifest."""
        files = self.journal.file[np.unique(self.first[self.kept])]
        reused = Counter[str]()
        for file, origin in self.journal.origins.items():
            reused[origin] += int((files == file).sum())
        return {"reused": dict(+reused)}

    def write_results(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Writes this rank's share of the Parquet files.

        Raises:
            WriterError: A file cannot be written.
        """
        rows_per_file = max(1, BYTES_PER_FILE // (self.journal.dtype.itemsize * self.journal.dimension + 128))
        parts = -(-len(self.kept) // rows_per_file)
        paths = [self.folder.vectors / f"part-{part:05d}-of-{parts:05d}.parquet" for part in range(parts)]
        make_folder(self.folder.vectors)
        with writing(self.folder.vectors):
            if rank == 0:
                for path in set(self.folder.vectors.glob(PARTS)).difference(paths):
                    path.unlink()  # an earlier attempt's, which had other rows to write
        for part in range(rank, parts, world_size):
            self._write_part(paths[part], self.kept[part * rows_per_file : (part + 1) * rows_per_file])

    def write_rejected(self) -> None:
        """Writes `rejected.jsonl`: the rows rejected while reading, then those that could not be computed."""
        files = self.summary["files"]
        with atomic_file(self.folder.rejected) as partial, partial.open("wb") as stream:
            with self.folder.input_rejected.open("rb") as earlier:
                shutil.copyfileobj(earlier, stream)
            for row in np.flatnonzero(~self.journal.has_vector[self.first]).tolist():
                entry = self.entries[row]
                file, line, name = (entry[column][0].as_py() for column in (FILE, ROW, ID))
                rejection = Rejection(files[file], line, name, self.journal.reasons[int(self.first[row])])
                stream.write(f"{rejection.to_json()}\n".encode())

    def _write_part(self, path: Path, rows: NDArray[np.int64]) -> None:
        features = vector_features(
            dimension=self.dimension,
            integer_ids=self.summary["integer_ids"],
            keep_text=self.keep_text,
            kept=self.kept_columns.types,
            columns=self.columns,
            dtype=str(self.journal.dtype),
        )
        schema = features.arrow_schema  # carries the features, so that `datasets` reads them back as they are
        held = digest(
            b"".join([*self.signature, str(schema).encode(), rows.tobytes(), self.first[rows].tobytes()])
        ).hex()
        if _held_rows(path) == held:
            return
        schema = schema.with_metadata({**schema.metadata, ROWS_KEY: held})
        float32_leaves = [
            leaf
            for leaf in _leaves(schema)
            if is_vector_column(leaf.partition(".")[0]) and self.journal.dtype == np.float32
        ]
        with (
            atomic_file(path) as partial,
            pq.ParquetWriter(
                partial,
                schema,
                # With their bytes apart float32 vectors shrink to 84 %, those of a model in bfloat16 to 34 %, for 4 us
                # more a row of 576. float16 ones shrink to 92 % as they are; few readers know them apart.
                compression="zstd",
                use_byte_stream_split=float32_leaves,
                use_dictionary=False,
                write_page_checksum=True,  # what a disk or a copy has damaged is noticed when it is read
            ) as writer,
        ):
            for start in range(0, len(rows), ROWS_PER_GROUP):
                some = rows[start : start + ROWS_PER_GROUP]
                entries = self.entries[some]
                vectors = np.split(self.journal.vectors(self.first[some]), len(self.columns), axis=1)  # of each layer
                columns = {
                    ID: entries.column(ID).cast(schema.field(ID).type),
                    TEXT: entries.column(TEXT),
                    **self.kept_columns.columns(some),
                    **{name: _lists(each) for name, each in zip(self.columns, vectors, strict=True)},
                    NUM_TOKENS: pa.array(self.lengths[some]),
                    PROMPT_DIGEST: pa.array(as_hex(prompt_digests(self.digests[some]))).cast(pa.string()),
                }
                writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))


def _held_rows(path: Path) -> str | None:
    """Returns what a part says of the rows it holds, or None where it is not there or not whole."""
    try:
        held: bytes = (pq.read_schema(path).metadata or {}).get(ROWS_KEY, b"")
    except (OSError, pa.ArrowException):
        return None
    return held.decode("ascii", errors="replace")


def _leaves(schema: pa.Schema) -> list[str]:
    """Names the columns as Parquet does, where each value within a list or an object has a column."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(position).path for position in range(len(columns.names))]


def _lists(vectors: NDArray[Any]) -> pa.FixedSizeListArray:
    """Returns vectors `[R, D]` as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
