"""The journal: what a run has computed so far, in append-only files that survive whatever kills the run.

In: row numbers and what was computed for them, or the reason why there is nothing. Out: for every row, where its result
lies. A result is a vector (`read_journal` below) or whatever else a record batch holds (`memvec.generation.outputs`).

How: every process of every attempt writes a file of its own, a frame a flush:

    magic (8 bytes) | payload length (8) | CRC-32 of the payload (4) | zeros to 64 | payload | zeros to a multiple of 64

where the payload is an Arrow IPC stream of one record batch `(index, …, reason)`. A frame is whole or it does not
count: a torn tail and a damaged middle fail their length or checksum, are reported, and their rows are computed again.
Reading goes on at the next magic. Why not one Arrow stream a file: a stream ends at its first damage.

Which process or attempt wrote a row does not matter; a row that was written twice counts once.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memvec.files import create_file
from memvec.schema import INDEX, VECTOR

MAGIC = b"MEMVEC\r\n"
HEADER = struct.Struct("<8sQI44x")  # 64 bytes, so that payloads start aligned
ALIGNMENT = 64
SUFFIX = ".frames"
REASON = "reason"

log = logging.getLogger(__name__)


def journal_schema(dimension: int) -> pa.Schema:
    """Returns the schema of a frame: a row has a vector of length `dimension` or a reason why it has none."""
    return pa.schema(
        [(INDEX, pa.int64()), (VECTOR, pa.list_(pa.float32(), dimension)), (REASON, pa.string())],
    )


def vector_rows(index: NDArray[np.int64], vectors: NDArray[np.float32]) -> pa.RecordBatch:
    """Returns rows of a frame.

    Args:
        index: Row numbers, `[B]`.
        vectors: `[B, D]` float32.
    """
    schema = journal_schema(vectors.shape[1])
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.record_batch([pa.array(index), values, pa.nulls(len(index), pa.string())], schema=schema)


class JournalWriter:
    """Appends frames to a new file of this process's own.

    Args:
        folder: The journal's folder.
        rank: Goes into the file's name, for people.
        fsync: `flush` makes every frame survive a power loss before the next is taken; `close` leaves that to the
            operating system until the file is closed. Either survives the death of the process.
    """

    def __init__(self, folder: Path, *, rank: int, fsync: Literal["flush", "close"] = "close") -> None:
        self.fsync = fsync
        self.path, self._descriptor = _create(folder, rank)

    def append(self, index: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Appends one frame of computed vectors; `index` is `[B]`, `vectors` `[B, D]`."""
        self.append_rows(vector_rows(index, vectors))

    def reject(self, index: int, reason: str, *, dimension: int) -> None:
        """Appends one frame that says why a row has no vector."""
        row = [pa.array([index]), pa.nulls(1, pa.list_(pa.float32(), dimension)), pa.array([reason])]
        self.append_rows(pa.record_batch(row, schema=journal_schema(dimension)))

    def append_rows(self, rows: pa.RecordBatch) -> None:
        """Appends one frame.

        Args:
            rows: With the columns `index` and `reason`, and between them what was computed.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        payload = sink.getvalue()
        padding = bytes(-len(payload) % ALIGNMENT)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(f"{self.path} was removed while the run was writing to it")
        frame = memoryview(b"".join([HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)), payload, padding]))
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


@dataclass
class JournalIndex:
    """Where every row's vector lies.

    Args:
        files: The journal's files.
        file: `[N]` int32, position in `files`, or -1 for a row that has no vector yet.
        start: `[N]` int64, where in that file the vector starts, in float32 numbers.
        reasons: Rows that will have no vector, and why.
        dimension: D, or 0 where the journal holds no vector.
        damaged: One sentence for every piece of a file that had to be passed over.
    """

    files: list[Path]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    reasons: dict[int, str] = field(default_factory=dict)
    dimension: int = 0
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


def read_journal(folder: Path, *, rows: int) -> JournalIndex:
    """Reads every frame of every journal file in `folder`.

    Args:
        folder: The journal's folder; without files the index is empty.
        rows: N, how many rows the run has; a frame that names others is damaged.
    """
    files = journal_files(folder)
    index = JournalIndex(files, np.full(rows, -1, dtype=np.int32), np.zeros(rows, dtype=np.int64))
    for number, batch, address in read_frames(files, rows=rows, damaged=index.damaged):
        _enter(index, batch, number, address)
    return index


def has_vectors(folder: Path, rows: int, attempt: int = 0) -> NDArray[np.bool_]:
    """Returns for which rows nothing is left to compute, `[N]` bool, whichever attempt it is."""
    return read_journal(folder, rows=rows).is_done


def journal_files(folder: Path) -> list[Path]:
    """Returns the journal's files, in a fixed order."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def read_frames(files: Sequence[Path], *, rows: int, damaged: list[str]) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """Yields every whole frame: its file's position in `files`, its record batch, and where that file is mapped.

    Args:
        files: Of `journal_files`.
        rows: N, how many rows the run has; a frame that names others is damaged.
        damaged: Gets one sentence for every piece of a file that had to be passed over.
    """
    for number, path in enumerate(files):
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as stream:  # the mapping outlives the file's descriptor, and goes with its last reader
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        for batch in _frames(content, path.name, damaged):
            index = batch.column(INDEX).to_numpy()
            if len(index) and not (index.min() >= 0 and index.max() < rows):
                damaged.append(f"{path.name}: a frame that names rows which this run has not")
                continue
            yield number, batch, pa.py_buffer(content).address
    for sentence in damaged:
        log.warning("journal: %s; the rows in them are computed again", sentence)


def _frames(content: mmap.mmap, name: str, damaged: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields the record batch of every whole frame, without copying; says in `damaged` what lies between them."""
    at, end = 0, len(content)
    view = pa.py_buffer(content)
    while at < end:
        payload = _payload(content, view, at)
        if payload is None:
            following = content.find(MAGIC, at + 1)
            while following >= 0 and _payload(content, view, following) is None:
                following = content.find(MAGIC, following + 1)
            resumed = end if following < 0 else following
            damaged.append(f"{name}: {resumed - at} bytes from byte {at} on are torn or damaged")
            at = resumed
            continue
        with pa.ipc.open_stream(payload) as reader:
            yield reader.read_next_batch()
        at += HEADER.size + len(payload) + -len(payload) % ALIGNMENT


def _payload(content: mmap.mmap, view: pa.Buffer, at: int) -> pa.Buffer | None:
    """Returns the payload of the frame that starts at `at`, or None where no whole frame does."""
    if at % ALIGNMENT or at + HEADER.size > len(content):
        return None
    magic, length, checksum = HEADER.unpack_from(content, at)
    start = at + HEADER.size
    if magic != MAGIC or start + length > len(content):
        return None
    payload = view.slice(start, length)
    return payload if zlib.crc32(payload) == checksum else None


def _enter(index: JournalIndex, batch: pa.RecordBatch, number: int, address: int) -> None:
    """Enters a frame's rows; `address` is where its file is mapped."""
    rows = batch.column(INDEX).to_numpy()
    vectors, reasons = batch.column(VECTOR), batch.column(REASON)
    if reasons.null_count < len(rows):
        index.reasons.update(zip(rows.tolist(), reasons.to_pylist(), strict=True))
        return
    index.dimension = vectors.type.list_size
    first = (vectors.values.buffers()[1].address - address) // np.dtype(np.float32).itemsize
    index.file[rows] = number
    index.start[rows] = first + np.arange(len(rows)) * index.dimension
