"""The frames of the journal: how a record batch stands in a file, and what of a file counts.

In: a record batch and the signature of the rows it is for (`memvec.data.prepared`). Out: bytes; and of files of such
bytes the record batches that are whole, signed for these rows, and of the columns that are expected.

    magic (8 bytes) | payload length (8) | signature (32) | CRC-32 (4) | zeros to 64 | payload | zeros to 64 · n

where the payload is an Arrow IPC stream of one record batch, and the checksum covers all before and behind it. A frame
is whole or it does not count: what is torn, damaged or of another run is reported, and its rows are computed again.
Reading continues at the next magic. Why not one Arrow stream a file: a stream ends at its first damage.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from memvec.data.prepared import Signature
from memvec.errors import RunFolderError
from memvec.schema import INDEX

MAGIC = b"MEMVEC2\n"
SIGNED = struct.Struct("<8sQ16s16s")
HEADER = struct.Struct("<8sQ16s16sI12x")  # 64 bytes, so that payloads start aligned
ALIGNMENT = 64
SUFFIX = ".frames"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """A frame that counts.

    Args:
        file: Position of its file in the list of files.
        batch: Its rows, in the mapped file; every row's index is one that the run has.
        address: Where the file is mapped, as long as the batch is held.
    """

    file: int
    batch: pa.RecordBatch
    address: int


def journal_files(folder: Path) -> list[Path]:
    """Returns the files that processes have written, in a fixed order."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def pack_frame(rows: pa.RecordBatch, signature: Signature) -> bytes:
    """Returns a record batch as a frame."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    payload = sink.getvalue()
    signed = (MAGIC, len(payload), *signature)
    checksum = zlib.crc32(payload, zlib.crc32(SIGNED.pack(*signed)))
    return b"".join([HEADER.pack(*signed, checksum), payload, bytes(-len(payload) % ALIGNMENT)])


def read_frames(
    files: Sequence[Path],
    *,
    rows: int,
    signature: Signature,
    is_expected: Callable[[pa.RecordBatch], bool],
    damaged: list[str],
) -> Iterator[Frame]:
    """Yields the frames that count, file by file; one file is open at a time.

    Args:
        files: The journal's files.
        rows: N, how many rows the run has; a frame that names others is damaged.
        signature: Of the rows that are wanted.
        is_expected: Whether a record batch has the columns that the journal's have, and what belongs into them.
        damaged: Gets one sentence for every piece of a file that does not count.

    Raises:
        RunFolderError: Frames were computed in this run for other rows than it has now.
    """
    for number, path in enumerate(files):
        if path.stat().st_size == 0:
            continue
        with pa.memory_map(str(path)) as stream:  # unlike Python's, its mapping lives on without the file's descriptor
            content = stream.read_buffer()
        strangers = 0
        for signed, payload in _payloads(content, path.name, damaged):
            if signed.run != signature.run:
                strangers += 1
                continue
            if signed.rows != signature.rows:
                found = "computed for other entries than the input has now, as another version of a library reads it"
                raise RunFolderError(path, found=found, advice="name another output_dir")
            batch = _read_batch(payload)
            if batch is None or not is_expected(batch):
                damaged.append(f"{path.name}: a frame with other columns than this run's")
            elif not _are_rows(batch, rows):
                damaged.append(f"{path.name}: a frame that names rows which this run has not")
            else:
                yield Frame(number, batch, content.address)
        if strangers:
            damaged.append(f"{path.name}: {strangers} frames of another run")


def report_damage(damaged: Sequence[str]) -> None:
    """Says what does not count."""
    for sentence in damaged:
        log.warning("journal: %s; the rows in them are computed again", sentence)


def _payloads(content: pa.Buffer, name: str, damaged: list[str]) -> Iterator[tuple[Signature, pa.Buffer]]:
    """Yields signature and payload of every whole frame, without copying; says in `damaged` what lies between them."""
    at, end = 0, content.size
    beginnings: Iterator[int] | None = None
    while at < end:
        frame = _frame_at(content, at)
        if frame is None:
            beginnings = iter(_magics(content)) if beginnings is None else beginnings
            resumed = next((start for start in beginnings if start > at and _frame_at(content, start)), end)
            damaged.append(f"{name}: {resumed - at} bytes from byte {at} on are torn or damaged")
            at = resumed
            continue
        yield frame
        at += HEADER.size + frame[1].size + -frame[1].size % ALIGNMENT


def _frame_at(content: pa.Buffer, at: int) -> tuple[Signature, pa.Buffer] | None:
    """Returns signature and payload of the frame that starts at `at`, or None where no whole frame does."""
    if at + HEADER.size > content.size:
        return None
    magic, length, run, rows, checksum = HEADER.unpack_from(content, at)
    start = at + HEADER.size
    if magic != MAGIC or start + length > content.size:
        return None
    payload = content.slice(start, length)
    is_whole = zlib.crc32(payload, zlib.crc32(content.slice(at, SIGNED.size))) == checksum
    return (Signature(run, rows), payload) if is_whole else None


def _magics(content: pa.Buffer) -> list[int]:
    """Returns where frames may begin."""
    words = np.frombuffer(content, dtype="<u8", count=content.size // 8)[:: ALIGNMENT // 8]
    starts: list[int] = (np.flatnonzero(words == int.from_bytes(MAGIC, "little")) * ALIGNMENT).tolist()
    return starts


def _read_batch(payload: pa.Buffer) -> pa.RecordBatch | None:
    """Returns the record batch of a payload, or None where there is none that can be read without harm."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            batch = reader.read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration):
        return None
    return batch


def _are_rows(batch: pa.RecordBatch, rows: int) -> bool:
    """Whether every row's index is one of a run with so many rows."""
    index = batch.column(INDEX)
    if index.null_count:
        return False
    numbers = index.to_numpy()
    return len(numbers) == 0 or (numbers.min() >= 0 and numbers.max() < rows)
