"""The vectors that the journal holds: where each row's lies, and what it is.

In: the journal's files. Out: an index of a few bytes a row, and the vectors of the rows that are asked for.

How: frames are checked once, when the index is made. Vectors are then copied out of a file that is mapped only as long,
so any number of files needs one descriptor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.data.prepared import Signature, read_signature
from memvec.layout import RunLayout
from memvec.schema import INDEX, REASON, VECTOR, VECTOR_DTYPES
from memvec.writer.frames import Frame, journal_files, read_frames, report_damage
from memvec.writer.journal import journal_schema, origin_of

TYPES = [pa.from_numpy_dtype(name) for name in VECTOR_DTYPES]


@dataclass
class JournalIndex:
    """Where every row's vector lies.

    Args:
        files: The journal's files.
        file: `[N]` int32, position in `files`, or -1 for a row that has no vector yet.
        start: `[N]` int64, where in that file the vector starts, in numbers of its dtype.
        reasons: Rows that will have no vector, and why.
        dimension: D, of several layers L * D; 0 where the journal holds no vector.
        dtype: Of the numbers.
        origins: Of the files that were copied from a finished run, which one: positions in `files`.
        damaged: One sentence for every piece of a file that had to be passed over.
    """

    files: list[Path]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    reasons: dict[int, str] = field(default_factory=dict)
    dimension: int = 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    origins: dict[int, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def has_vector(self) -> NDArray[np.bool_]:
        """Whether a row's vector is there, `[N]` bool."""
        there: NDArray[np.bool_] = self.file >= 0
        return there

    @property
    def is_done(self) -> NDArray[np.bool_]:
        """Whether nothing is left to compute for a row, `[N]` bool."""
        done = self.has_vector
        done[list(self.reasons)] = True
        return done

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Returns the vectors of rows that have one, `[B, D]` of their dtype; of several layers `[B, L * D]`."""
        vectors = np.empty((len(rows), self.dimension), dtype=self.dtype)
        files, starts = self.file[rows], self.start[rows]
        for file in np.unique(files).tolist():
            here = files == file
            path = self.files[file]
            length = path.stat().st_size // self.dtype.itemsize
            numbers = np.memmap(path, dtype=self.dtype, mode="r", shape=(length,))
            vectors[here] = np.lib.stride_tricks.sliding_window_view(numbers, self.dimension)[starts[here]]
        return vectors


def read_journal(folder: Path, *, rows: int, signature: Signature) -> JournalIndex:
    """Reads every frame of every journal file in `folder`.

    Args:
        folder: The journal's folder; without files the index is empty.
        rows: N, how many rows the run has.
        signature: Of these rows; what is signed otherwise does not count.

    Raises:
        RunFolderError: Vectors were computed in this run for other rows than it has now.
    """
    types = Counter[pa.DataType]()
    index = _read(folder, rows, signature, types)
    if len(types) > 1:  # a run has one: what most vectors have
        index = _read(folder, rows, signature, Counter({types.most_common(1)[0][0]: 1}))
    report_damage(index.damaged)
    return index


def has_vectors(folder: RunLayout, rows: int, attempt: int = 0) -> NDArray[np.bool_]:
    """Returns for which rows of a run nothing is left to compute, `[N]` bool, whichever attempt it is."""
    return read_journal(folder.journal, rows=rows, signature=read_signature(folder)).is_done


def _read(folder: Path, rows: int, signature: Signature, types: Counter[pa.DataType]) -> JournalIndex:
    """Returns the index of vectors of one type (dtype, dimension), the first in `types`; counts there what it met."""
    index = JournalIndex(
        files=journal_files(folder), file=np.full(rows, -1, dtype=np.int32), start=np.zeros(rows, dtype=np.int64)
    )

    def is_expected(batch: pa.RecordBatch) -> bool:
        if not _has_vectors_or_reasons(batch):
            return False
        found = batch.schema.field(VECTOR).type
        types[found] += len(batch) - batch.column(VECTOR).null_count
        return bool(found == next(iter(types)))

    for frame in read_frames(
        index.files, rows=rows, signature=signature, is_expected=is_expected, damaged=index.damaged
    ):
        _enter(index, frame)
    return index


def _has_vectors_or_reasons(batch: pa.RecordBatch) -> bool:
    """Whether a record batch has the journal's columns, and each row a whole vector or a reason."""
    if VECTOR not in batch.schema.names or not pa.types.is_fixed_size_list(batch.schema.field(VECTOR).type):
        return False
    found = batch.schema.field(VECTOR).type
    if found.value_type not in TYPES or batch.schema != journal_schema(found.list_size, found.value_type):
        return False
    vectors, reasons = batch.column(VECTOR), batch.column(REASON)
    has_either = vectors.is_valid().to_numpy(zero_copy_only=False) ^ reasons.is_valid().to_numpy(zero_copy_only=False)
    return bool(has_either.all()) and vectors.flatten().null_count == 0


def _enter(index: JournalIndex, frame: Frame) -> None:
    rows = frame.batch.column(INDEX).to_numpy()
    vectors, reasons = frame.batch.column(VECTOR), frame.batch.column(REASON)
    dimension = vectors.type.list_size
    has_vector = vectors.is_valid().to_numpy(zero_copy_only=False)
    if not has_vector.all():
        given_up = zip(rows.tolist(), reasons.to_pylist(), strict=True)
        index.reasons.update({row: reason for row, reason in given_up if reason is not None})
    if has_vector.any():
        index.dimension, index.dtype = dimension, np.dtype(vectors.type.value_type.to_pandas_dtype())
        first = (vectors.values.buffers()[1].address - frame.address) // index.dtype.itemsize
        index.file[rows[has_vector]] = frame.file
        if (origin := origin_of(frame.batch)) is not None:
            index.origins[frame.file] = origin
        index.start[rows[has_vector]] = (first + np.arange(len(rows)) * dimension)[has_vector]
