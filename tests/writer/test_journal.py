"""What is in the journal is read back exactly; what is torn or damaged is reported and takes nothing else with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memvec.writer.journal import JournalWriter, vector_rows
from memvec.writer.vectors import JournalIndex, read_journal
from tests.helpers.signatures import MINE

D = 6


def vectors_of(rows: Sequence[int], dimension: int = D) -> NDArray[np.float32]:
    """Returns vectors that tell the row and the column of every number."""
    return (np.asarray(rows)[:, None] * 100 + np.arange(dimension)).astype(np.float32).reshape(len(rows), dimension)


def write(folder: Path, frames: Sequence[Sequence[int]], *, rank: int = 0, dimension: int = D, **options: Any) -> Path:
    writer = JournalWriter(folder, rank=rank, signature=MINE, **options)
    for rows in frames:
        writer.append_rows(vector_rows(np.asarray(rows, dtype=np.int64), vectors_of(rows, dimension)))
    writer.close()
    return writer.path


def frame_ends(frames: Sequence[Sequence[int]]) -> list[int]:
    """Returns where each frame ends in a file that holds these frames."""
    ends = []
    for count in range(len(frames) + 1):
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), frames[:count])
            ends.append(path.stat().st_size if path.exists() else 0)
    return ends[1:]


def stored_vector(index: JournalIndex, row: int) -> NDArray[np.float32]:
    """Returns the numbers that stand where the index says."""
    content = np.fromfile(index.files[index.file[row]], dtype=np.float32)
    return content[index.start[row] :][: index.dimension]


def found_rows(index: JournalIndex) -> list[int]:
    """Returns the rows that have a vector, having compared each with what was appended."""
    rows: list[int] = np.flatnonzero(index.has_vector).tolist()
    for row in rows:
        np.testing.assert_array_equal(stored_vector(index, row), vectors_of([row], index.dimension)[0])
    return rows


@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=8), dimension=st.integers(1, 33), data=st.data())
def test_every_appended_row_is_found_where_the_index_says(
    sizes: list[int], dimension: int, data: st.DataObject
) -> None:
    total = sum(sizes)
    rows = data.draw(st.permutations(range(total + 3)))[:total]
    with tempfile.TemporaryDirectory() as folder:
        cuts = np.cumsum([0, *sizes])
        frames = [rows[a:b] for a, b in pairwise(cuts)]
        ranks = data.draw(st.integers(1, 3))
        for rank in range(ranks):
            write(Path(folder), frames[rank::ranks], rank=rank, dimension=dimension)
        index = read_journal(Path(folder), rows=total + 3, signature=MINE)
        assert found_rows(index) == sorted(rows)
        assert index.dimension == dimension
        assert index.damaged == []


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = np.asarray([[0.1, -0.0, 1e-45, 3.4e38, -1e-30, 7.0]], dtype=np.float32)
    writer = JournalWriter(tmp_path, rank=0, signature=MINE)
    writer.append_rows(vector_rows(np.asarray([2]), odd))
    writer.close()
    stored = stored_vector(read_journal(tmp_path, rows=3, signature=MINE), 2)
    assert stored.tobytes() == odd.tobytes()


def test_float16_comes_back_as_it_is_and_apart_from_float32(tmp_path: Path) -> None:
    halves = np.asarray([[0.1, -0.0, 6e-8, 65504, -1e-3, 7.0]] * 3, dtype=np.float16)
    writer = JournalWriter(tmp_path, rank=0, signature=MINE)
    writer.append_rows(vector_rows(np.asarray([4, 2, 0]), halves))
    writer.reject(3, "too large", dimension=D, dtype="float16")
    writer.close()
    write(tmp_path, [[1]], rank=1)
    index = read_journal(tmp_path, rows=5, signature=MINE)
    assert index.vectors(np.asarray([2, 0, 4])).tobytes() == halves.tobytes()
    assert (np.flatnonzero(index.has_vector).tolist(), index.reasons) == ([0, 2, 4], {3: "too large"})
    assert index.damaged == ["rank-00001-attempt-001.frames: a frame with other columns than this run's"]


def test_vectors_that_spell_a_frames_beginning_are_only_vectors(tmp_path: Path) -> None:
    path = write(tmp_path, [[0]])
    header = np.frombuffer(path.read_bytes()[:64], dtype=np.float32)  # the magic, as numbers
    writer = JournalWriter(tmp_path, rank=1, signature=MINE)
    writer.append_rows(vector_rows(np.asarray([1, 2]), np.stack([header, header])))
    writer.close()
    path.unlink()
    index = read_journal(tmp_path, rows=3, signature=MINE)
    assert stored_vector(index, 1).tobytes() == stored_vector(index, 2).tobytes() == header.tobytes()
    assert index.damaged == []


def test_without_files_nothing_is_done(tmp_path: Path) -> None:
    index = read_journal(tmp_path, rows=4, signature=MINE)
    assert (index.files, index.dimension, index.reasons, index.damaged) == ([], 0, {}, [])
    assert not index.has_vector.any()
    assert not index.is_done.any()


def test_an_empty_file_is_removed_when_closed(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, rank=0, signature=MINE)
    assert writer.path.exists()
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path, [[0, 1]])
    path.with_name(f"z{path.name}").touch()
    index = read_journal(tmp_path, rows=2, signature=MINE)
    assert found_rows(index) == [0, 1]
    assert index.damaged == []


def test_every_attempt_of_a_rank_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = {write(tmp_path, [[row]], rank=3) for row in range(3)}
    assert len(paths) == 3
    assert all("3" in path.name for path in paths)
    assert found_rows(read_journal(tmp_path, rows=3, signature=MINE)) == [0, 1, 2]


def test_two_open_writers_of_one_rank_do_not_share_a_file(tmp_path: Path) -> None:
    first, second = JournalWriter(tmp_path, rank=0, signature=MINE), JournalWriter(tmp_path, rank=0, signature=MINE)
    second.append_rows(vector_rows(np.asarray([1]), vectors_of([1])))
    first.append_rows(vector_rows(np.asarray([0]), vectors_of([0])))
    first.close()
    second.close()
    assert found_rows(read_journal(tmp_path, rows=2, signature=MINE)) == [0, 1]


@pytest.mark.parametrize("fsync", ["flush", "close"])
def test_a_frame_is_there_for_others_before_the_file_is_closed(
    tmp_path: Path, fsync: Literal["flush", "close"]
) -> None:
    writer = JournalWriter(tmp_path, rank=0, signature=MINE, fsync=fsync)
    for row in range(3):
        writer.append_rows(vector_rows(np.asarray([row]), vectors_of([row])))
        assert found_rows(read_journal(tmp_path, rows=3, signature=MINE)) == list(range(row + 1))
    writer.close()


def test_a_row_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, [[0, 1], [1, 2]], rank=0)
    write(tmp_path, [[2, 3]], rank=1)
    index = read_journal(tmp_path, rows=5, signature=MINE)
    assert found_rows(index) == [0, 1, 2, 3]
    assert index.damaged == []


def test_a_reason_ends_a_row_without_a_vector(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, rank=0, signature=MINE)
    writer.append_rows(vector_rows(np.asarray([0, 2]), vectors_of([0, 2])))
    writer.reject(3, "不是有限数 (not finite)", dimension=D)
    writer.append_rows(vector_rows(np.asarray([4]), vectors_of([4])))
    writer.close()
    index = read_journal(tmp_path, rows=6, signature=MINE)
    assert found_rows(index) == [0, 2, 4]
    assert index.reasons == {3: "不是有限数 (not finite)"}
    assert np.flatnonzero(index.is_done).tolist() == [0, 2, 3, 4]
    assert np.flatnonzero(index.has_vector).tolist() == [0, 2, 4]  # asking whether all is done changes nothing


def test_only_reasons_and_no_vector_is_a_journal_too(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, rank=0, signature=MINE)
    writer.reject(0, "why", dimension=D)
    writer.close()
    index = read_journal(tmp_path, rows=1, signature=MINE)
    assert index.is_done.tolist() == [True]
    assert index.has_vector.tolist() == [False]


@pytest.mark.slow
def test_a_torn_tail_loses_its_frame_only_wherever_it_is_torn(tmp_path: Path) -> None:
    frames = [[0, 1, 2], [3], [4, 5]]
    path = write(tmp_path, frames)
    content = path.read_bytes()
    *_, start, end = frame_ends(frames)
    assert end == len(content)
    survived = set()
    for size in range(start, end):
        path.write_bytes(content[:size])
        index = read_journal(tmp_path, rows=6, signature=MINE)
        rows = found_rows(index)
        survived.add(tuple(rows))
        assert rows[:4] == [0, 1, 2, 3]
        # Beyond the payload there are only zeros to fill up: without them the frame is whole.
        assert rows == [0, 1, 2, 3] or size >= end - 64
        assert (index.damaged == []) == (size == start or len(rows) == 6)
    assert (0, 1, 2, 3) in survived


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_a_changed_byte_loses_its_frame_only_and_is_reported(tmp_path: Path, frame: int) -> None:
    frames = [[0, 1], [2, 3], [4, 5]]
    path = write(tmp_path, frames)
    content = path.read_bytes()
    ends = [0, *frame_ends(frames)]
    others = [row for number, rows in enumerate(frames) if number != frame for row in rows]
    lost = 0
    for at in range(ends[frame], ends[frame + 1], 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
        index = read_journal(tmp_path, rows=6, signature=MINE)
        rows = found_rows(index)
        assert set(others) <= set(rows)
        if len(rows) < 6:
            lost += 1
            assert rows == others
            assert len(index.damaged) == 1
            assert path.name in index.damaged[0]
            assert str(ends[frame]) in index.damaged[0]
    assert lost * 5 > 0.7 * (ends[frame + 1] - ends[frame])  # the rest are zeros that nobody reads


@given(garbage=st.binary(min_size=1, max_size=300))
def test_garbage_at_the_end_loses_nothing_and_is_reported(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), [[0, 1], [2]])
        path.write_bytes(path.read_bytes() + garbage)
        index = read_journal(Path(folder), rows=3, signature=MINE)
        assert found_rows(index) == [0, 1, 2]
        assert len(index.damaged) == 1


def test_a_file_of_garbage_is_reported_and_holds_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, [[0]])
    magic = path.read_bytes()[:8]
    path.write_bytes((magic + b"\xff" * 100) * 20)
    index = read_journal(tmp_path, rows=1, signature=MINE)
    assert found_rows(index) == []
    assert len(index.damaged) == 1


def test_damage_is_said_once_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, [[0], [1]])
    path.write_bytes(path.read_bytes()[:-70])
    read_journal(tmp_path, rows=2, signature=MINE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path.name in caplog.text
    assert "computed again" in caplog.text


@pytest.mark.parametrize("rows", [[-1], [5], [0, 5], [2**40]])
def test_a_frame_that_names_rows_which_the_run_has_not_is_damage(tmp_path: Path, rows: list[int]) -> None:
    writer = JournalWriter(tmp_path, rank=0, signature=MINE)
    writer.append_rows(vector_rows(np.asarray([1, 2]), vectors_of([1, 2])))
    writer.append_rows(vector_rows(np.asarray(rows), np.zeros((len(rows), D), dtype=np.float32)))
    writer.append_rows(vector_rows(np.asarray([4]), vectors_of([4])))
    writer.close()
    index = read_journal(tmp_path, rows=5, signature=MINE)
    assert found_rows(index) == [1, 2, 4]
    assert len(index.damaged) == 1
    assert path_named(index, writer.path)


def path_named(index: JournalIndex, path: Path) -> bool:
    return all(path.name in sentence for sentence in index.damaged)


@pytest.mark.parametrize("gone", range(1, 9))
def test_bytes_that_went_missing_never_turn_into_wrong_vectors(tmp_path: Path, gone: int) -> None:
    """Frames behind the gap stand at odd addresses: they are read right or not at all."""
    frames = [[0, 1], [2, 3], [4, 5]]
    path = write(tmp_path, frames)
    content = path.read_bytes()
    first, second, _ = frame_ends(frames)
    at = (first + second) // 2
    path.write_bytes(content[:at] + content[at + gone :])
    index = read_journal(tmp_path, rows=6, signature=MINE)
    rows = found_rows(index)
    assert rows[:2] == [0, 1]
    assert 2 not in rows
    assert 3 not in rows
    assert index.damaged
