"""The journal: what a run has computed so far, in append-only files that survive whatever kills the run.

In: row numbers and what was computed for them, or the reason why there is nothing. Out: frames (`memvec.writer.frames`)
in a file of this process's own. What is read back is a vector (`memvec.writer.vectors`) or whatever else a record batch
holds (`memvec.generation.completions`).

Which process or attempt wrote a row does not matter; a row that was written twice counts once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.data.prepared import Signature
from memvec.files import create_file, writing
from memvec.schema import INDEX, REASON, VECTOR
from memvec.writer.frames import SUFFIX, pack_frame

# Where the schema of a frame says which finished run its rows were copied from.
ORIGIN = b"memvec.origin"


def journal_schema(dimension: int, dtype: pa.DataType | None = None) -> pa.Schema:
    """Returns the schema of a frame: a row has a vector of `dimension` numbers, by default float32, or a reason."""
    vectors = pa.list_(dtype or pa.float32(), dimension)
    return pa.schema([(INDEX, pa.int64()), (VECTOR, vectors), (REASON, pa.string())])


def vector_rows(
    index: NDArray[np.int64], vectors: NDArray[Any], reasons: Sequence[str | None] | None = None
) -> pa.RecordBatch:
    """Returns rows of a frame.

    Args:
        index: Row numbers, `[B]`.
        vectors: `[B, D]` float32 or float16; of several layers, one behind the other, `[B, L * D]`.
        reasons: Why a row has no vector, `[B]`; None where it has one. By default all have.
    """
    given_up = pa.array(reasons or [None] * len(index), pa.string())
    values = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), vectors.shape[1], mask=given_up.is_valid()
    )
    schema = journal_schema(vectors.shape[1], values.type.value_type)
    return pa.record_batch([pa.array(index), values, given_up], schema=schema)


def copied_rows(rows: pa.RecordBatch, origin: str) -> pa.RecordBatch:
    """Returns rows of a frame that says which finished run they were copied from."""
    return rows.replace_schema_metadata({ORIGIN: os.fsencode(origin)})


def origin_of(rows: pa.RecordBatch) -> str | None:
    """Returns which finished run the rows of a frame were copied from; None where they were computed."""
    origin: bytes | None = (rows.schema.metadata or {}).get(ORIGIN)
    return None if origin is None else os.fsdecode(origin)


class JournalWriter:
    """Appends frames to a new file of this process's own.

    Args:
        folder: The journal's folder.
        rank: Goes into the file's name, for people.
        signature: Of the rows that are computed.
        fsync: `flush` makes every frame survive a power loss before the next is taken; `close` leaves that to the
            operating system until the file is closed. Either survives the death of the process.

    Raises:
        WriterError: The file cannot be written, here or in any method.
    """

    def __init__(
        self, folder: Path, *, rank: int, signature: Signature, fsync: Literal["flush", "close"] = "close"
    ) -> None:
        self.signature = signature
        self.fsync = fsync
        with writing(folder):
            self.path, self._descriptor = _create(folder, rank)

    def reject(self, index: int, reason: str, *, dimension: int, dtype: str = "float32") -> None:
        """Appends one frame that says why a row has no vector."""
        self.append_rows(vector_rows(np.asarray([index]), np.zeros((1, dimension), dtype=dtype), [reason]))

    def append_rows(self, rows: pa.RecordBatch) -> None:
        """Appends one frame.

        Args:
            rows: With the columns `index` and `reason`, and between them what was computed.
        """
        frame = memoryview(pack_frame(rows, self.signature))
        with writing(self.path):
            if os.fstat(self._descriptor).st_nlink == 0:
                raise FileNotFoundError("it was removed while the run was writing to it")
            while frame:  # write may take less than it is given
                frame = frame[os.write(self._descriptor, frame) :]
            if self.fsync == "flush":
                os.fsync(self._descriptor)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Makes all frames durable and closes the file; a file without frames is removed."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        with writing(self.path):
            try:
                os.fsync(descriptor)
                if os.fstat(descriptor).st_size == 0:
                    self.path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _create(folder: Path, rank: int) -> tuple[Path, int]:
    for attempt in range(1, 1_000_000):
        path = folder / f"rank-{rank:05d}-attempt-{attempt:03d}{SUFFIX}"
        try:
            return path, create_file(path, os.O_EXCL | os.O_APPEND)
        except FileExistsError:
            continue
    raise FileExistsError(f"{folder}: a million attempts")
