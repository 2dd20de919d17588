"""A frame counts where it is whole, of this run, and of the columns that the run writes; whatever else is reported."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from memvec.data.prepared import Signature
from memvec.errors import RunFolderError
from memvec.schema import INDEX, REASON, VECTOR
from memvec.writer.frames import ALIGNMENT, HEADER, MAGIC, SIGNED, pack_frame
from memvec.writer.journal import JournalWriter, journal_schema, vector_rows
from memvec.writer.vectors import JournalIndex, read_journal
from tests.helpers.damage import DAMAGES, damage
from tests.helpers.refusals import refused
from tests.helpers.signatures import ANOTHER_RUN, MINE

D = 6
ROWS = 60
OTHER_ROWS = Signature(MINE.run, b"otherwise" + b"." * 7)


def vectors_of(rows: Sequence[int], dimension: int = D) -> NDArray[np.float32]:
    """Returns vectors that tell the row and the column of every number."""
    return (np.asarray(rows)[:, None] * 100 + np.arange(dimension)).astype(np.float32).reshape(len(rows), dimension)


def write(
    folder: Path, frames: Sequence[Sequence[int]], *, signature: Signature = MINE, dimension: int = D, rank: int = 0
) -> Path:
    with JournalWriter(folder, rank=rank, signature=signature) as journal:
        for rows in frames:
            journal.append_rows(vector_rows(np.asarray(rows), vectors_of(rows, dimension)))
    return journal.path


def read(folder: Path, rows: int = ROWS) -> JournalIndex:
    return read_journal(folder, rows=rows, signature=MINE)


def found_rows(index: JournalIndex) -> list[int]:
    """Returns the rows that have a vector, having compared each with what was appended."""
    rows: list[int] = np.flatnonzero(index.has_vector).tolist()
    if rows:
        np.testing.assert_array_equal(index.vectors(np.asarray(rows)), vectors_of(rows))
    return rows


def as_frame(payload: bytes, signature: Signature = MINE) -> bytes:
    """Returns any bytes as the payload of a frame that is whole."""
    signed = (MAGIC, len(payload), *signature)
    checksum = zlib.crc32(payload, zlib.crc32(SIGNED.pack(*signed)))
    return HEADER.pack(*signed, checksum) + payload + bytes(-len(payload) % ALIGNMENT)


def insert(path: Path, frame: bytes) -> None:
    """Puts bytes before all frames of a file."""
    path.write_bytes(frame + path.read_bytes())


def test_a_file_of_another_run_is_reported_and_ignored(tmp_path: Path) -> None:
    write(tmp_path, [[0, 1], [2]])
    other = write(tmp_path, [[1, 2], [3, 4], [5]], signature=ANOTHER_RUN, rank=1)
    index = read(tmp_path)
    assert found_rows(index) == [0, 1, 2]
    assert index.damaged == [f"{other.name}: 3 frames of another run"]


@pytest.mark.parametrize("dimension", [1, D - 1, D + 1, 500])
def test_a_file_of_another_run_and_dimension_is_ignored(dimension: int, tmp_path: Path) -> None:
    write(tmp_path, [[3, 4]], signature=ANOTHER_RUN, dimension=dimension)
    write(tmp_path, [[0, 1]], rank=1)
    index = read(tmp_path)
    assert (found_rows(index), index.dimension) == ([0, 1], D)


def test_a_frame_of_another_run_within_a_file_is_ignored(tmp_path: Path) -> None:
    other = write(tmp_path, [[1, 2]], signature=ANOTHER_RUN)
    path = write(tmp_path, [[0]], rank=1)
    insert(path, other.read_bytes())
    other.unlink()
    assert found_rows(read(tmp_path)) == [0]


def test_a_file_of_this_run_for_other_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [[1, 2]], signature=OTHER_ROWS)
    with refused(RunFolderError, path, found="computed for other entries than the input has now"):
        read(tmp_path)


def test_a_file_of_the_version_before_is_reported(tmp_path: Path) -> None:
    """Its frames say nothing of their run."""
    write(tmp_path, [[0]])
    payload = b"any" * 30
    old = HEADER.size * b"\0"
    old = b"MEMVEC\r\n" + len(payload).to_bytes(8, "little") + zlib.crc32(payload).to_bytes(4, "little") + old[20:]
    (tmp_path / "rank-00000-attempt-000.frames").write_bytes(old + payload)
    index = read(tmp_path)
    assert found_rows(index) == [0]
    assert len(index.damaged) == 1


@pytest.mark.parametrize("zeros", [64, 128, 4096])
def test_zeros_are_no_frames(zeros: int, tmp_path: Path) -> None:
    path = write(tmp_path, [[0, 1]])
    insert(path, bytes(zeros))
    index = read(tmp_path)
    assert found_rows(index) == [0, 1]
    assert index.damaged == [f"{path.name}: {zeros} bytes from byte 0 on are torn or damaged"]


def test_a_frame_of_no_length_and_no_checksum_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path, [[0, 1]])
    insert(path, HEADER.pack(MAGIC, 0, *MINE, 0))
    index = read(tmp_path)
    assert found_rows(index) == [0, 1]
    assert index.damaged == [f"{path.name}: 64 bytes from byte 0 on are torn or damaged"]


SCHEMA = journal_schema(D)
STRANGE = {
    "nothing": b"",
    "no Arrow": b"neither Arrow nor anything " * 9,
    "Arrow without a batch": pa.schema([(INDEX, pa.int64())]).serialize().to_pybytes(),
    **{
        name: pack_frame(batch, MINE)[HEADER.size :]
        for name, batch in {
            "no columns": pa.record_batch({}),
            "other columns": pa.record_batch({INDEX: pa.array([1]), "text": pa.array(["tea"])}),
            "no index": pa.record_batch({VECTOR: pa.array([[1.0] * D], pa.list_(pa.float32(), D))}),
            "float64": pa.record_batch(
                {
                    INDEX: pa.array([1]),
                    VECTOR: pa.array([[1.0] * D], pa.list_(pa.float64(), D)),
                    REASON: pa.nulls(1, pa.string()),
                }
            ),
            "neither": pa.record_batch(
                [pa.array([1]), pa.nulls(1, pa.list_(pa.float32(), D)), pa.nulls(1, pa.string())], schema=SCHEMA
            ),
            "both": pa.record_batch(
                [pa.array([1]), pa.array([[1.0] * D], pa.list_(pa.float32(), D)), pa.array(["why"])], schema=SCHEMA
            ),
            "a vector with a gap": pa.record_batch(
                [
                    pa.array([1]),
                    pa.array([[1.0] * (D - 1) + [None]], pa.list_(pa.float32(), D)),
                    pa.nulls(1, pa.string()),
                ],
                schema=SCHEMA,
            ),
            "no row number": pa.record_batch(
                [
                    pa.array([None], pa.int64()),
                    pa.array([[1.0] * D], pa.list_(pa.float32(), D)),
                    pa.nulls(1, pa.string()),
                ],
                schema=SCHEMA,
            ),
        }.items()
    },
}


@pytest.mark.parametrize("payload", STRANGE.values(), ids=STRANGE)
def test_a_whole_frame_of_something_else_is_damage(payload: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, [[0, 1]])
    insert(path, as_frame(payload))
    index = read(tmp_path)
    assert found_rows(index) == [0, 1]
    assert len(index.damaged) == 1
    assert path.name in index.damaged[0]


@pytest.mark.parametrize("first", [True, False])
def test_a_frame_of_another_dimension_is_damage(first: bool, tmp_path: Path) -> None:
    """Whichever stands first: what most vectors have is the model's."""
    write(tmp_path, [[0, 1, 2]], rank=1)
    odd = write(tmp_path, [[1, 4]], dimension=D + 1, rank=0 if first else 2)
    index = read(tmp_path)
    assert (found_rows(index), index.dimension) == ([0, 1, 2], D)
    assert index.damaged == [f"{odd.name}: a frame with other columns than this run's"]


def test_a_frame_may_hold_vectors_and_reasons(tmp_path: Path) -> None:
    vectors = pa.array([list(vectors_of([2])[0]), None, list(vectors_of([4])[0])], pa.list_(pa.float32(), D))
    with JournalWriter(tmp_path, rank=0, signature=MINE) as journal:
        journal.append_rows(
            pa.record_batch([pa.array([2, 3, 4]), vectors, pa.array([None, "no room", None])], schema=SCHEMA)
        )
    index = read(tmp_path)
    assert found_rows(index) == [2, 4]
    assert index.reasons == {3: "no room"}


@pytest.mark.slow
def test_three_hundred_damaged_files_give_right_vectors(tmp_path: Path) -> None:
    """What is found is right, and what is not damaged is found; never an exception."""
    choose = random.Random(13)
    spoiled = write(tmp_path, [[n, n + 1, n + 2] for n in range(0, 30, 3)])
    write(tmp_path, [[n] for n in range(30, 40)], rank=1)
    (tmp_path / "others").mkdir()
    others = {
        "another run": write(tmp_path / "others", [[n, n + 1] for n in range(0, 30, 2)], signature=ANOTHER_RUN),
        "another dimension": write(tmp_path / "others", [[n] for n in range(9)], signature=ANOTHER_RUN, dimension=4),
        "old": write(tmp_path / "others", [[n, n + 2] for n in range(20)]),
    }
    whole = spoiled.read_bytes()
    losses = 0
    for number in range(300):
        kind = choose.choice(DAMAGES)
        splice = choose.choice(list(others.values())).read_bytes()
        spoiled.write_bytes(damage(whole, kind, choose, splice=splice))
        index = read(tmp_path)
        rows = found_rows(index)
        assert set(range(30, 40)) <= set(rows), number
        assert len(rows) == 40 or index.damaged or kind in ("emptied", "cut"), number
        losses += len(rows) < 40
    assert losses > 150


@pytest.mark.processes
def test_any_number_of_files_takes_few_descriptors(tmp_path: Path) -> None:
    """In a process that may hold 40 files open, 600 are read, and every vector taken from them."""
    for number in range(600):
        write(tmp_path, [[number]], rank=number)
    script = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from memvec.writer.vectors import read_journal\n"
        "from tests.helpers.signatures import MINE\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "index = read_journal(Path(sys.argv[1]), rows=600, signature=MINE)\n"
        "rows = np.random.default_rng(0).permutation(600)\n"
        "assert (index.vectors(rows)[:, 0] == rows * 100).all()\n"
        "print('right')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
