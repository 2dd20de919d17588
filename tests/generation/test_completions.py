"""What was written to the journal is read back as it was, and says what is left to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from memvec.generation.completions import COMPLETION_SCHEMA, Completion, CompletionIndex, read_completions
from memvec.generation.parser import Outcome
from memvec.writer.journal import JournalWriter, vector_rows
from tests.generation.frames import no_output, said, write_frames
from tests.helpers.damage import DAMAGES, damage
from tests.helpers.signatures import ANOTHER_RUN, MINE

FACT, NONE, NOISE = "- Ann likes tea.", "NONE", "###"


def texts(index: CompletionIndex, rows: int) -> list[list[str]]:
    return [[output.text for output in index.outputs(row)] for row in range(rows)]


def test_outputs_of_all_frames_ranks_and_attempts_are_read_back(tmp_path: Path) -> None:
    strange = ["", "她喜欢喝茶。😺", 'quotes " and\nlines\u2028 and \x00', "long " * 50_000]
    write_frames(tmp_path, [said(3, strange[3]), said(0, strange[0])], [said(2, strange[2])])
    write_frames(tmp_path, [said(1, strange[1])], [said(1, "again", attempt=1)], rank=1)
    assert texts(read_completions(tmp_path, rows=5, signature=MINE), 5) == [
        [""],
        [strange[1], "again"],
        [strange[2]],
        [strange[3]],
        [],
    ]


def test_an_output_says_its_attempt_length_and_cut(tmp_path: Path) -> None:
    write_frames(tmp_path, [said(0, NOISE, num_tokens=7, is_cut=True)], [said(0, FACT, attempt=1, num_tokens=9)])
    assert read_completions(tmp_path, rows=1, signature=MINE).outputs(0) == [
        Completion(NOISE, attempt=0, num_tokens=7, is_cut=True),
        Completion(FACT, attempt=1, num_tokens=9, is_cut=False),
    ]


def test_a_frame_of_part_of_a_batch_holds_that_part(tmp_path: Path) -> None:
    """The writer cuts what has gathered into frames."""
    rows = pa.RecordBatch.from_pylist([said(n, f"text {n} " * n) for n in range(9)], schema=COMPLETION_SCHEMA)
    with JournalWriter(tmp_path, rank=0, signature=MINE) as writer:
        writer.append_rows(rows.slice(6, 3))
        writer.append_rows(rows.slice(2, 4))
    assert texts(read_completions(tmp_path, rows=9, signature=MINE), 9) == [
        [],
        [],
        *([f"text {n} " * n] for n in range(2, 9)),
    ]


@pytest.mark.parametrize("frame", [[said(0, "")], [said(0, ""), said(1, "")]], ids=len)
def test_a_frame_of_empty_texts_alone_is_read(frame: list[dict[str, object]], tmp_path: Path) -> None:
    """A model that ends at once has written an empty text, which is an output."""
    write_frames(tmp_path, frame)
    assert texts(read_completions(tmp_path, rows=len(frame), signature=MINE), len(frame)) == [[""]] * len(frame)


def test_a_window_without_output_has_its_reason(tmp_path: Path) -> None:
    write_frames(tmp_path, [said(0, FACT), no_output(1, "no room"), said(2, NONE)], [no_output(3, "no room either")])
    index = read_completions(tmp_path, rows=4, signature=MINE)
    assert index.reasons == {1: "no room", 3: "no room either"}
    assert texts(index, 4) == [[FACT], [], [NONE], []]
    assert index.is_done(0).all()


def test_what_was_not_understood_is_left_for_another_attempt(tmp_path: Path) -> None:
    write_frames(
        tmp_path,
        [said(0, FACT), said(1, NONE), said(2, NOISE), said(3, NOISE), no_output(4, "no room"), said(5, NOISE)],
        [said(3, FACT, attempt=1), no_output(5, "no room", attempt=1)],
    )
    index = read_completions(tmp_path, rows=7, signature=MINE)
    assert np.flatnonzero(~index.is_done(0)).tolist() == [6]
    assert np.flatnonzero(~index.is_done(1)).tolist() == [2]  # what the first has not made is not the second's to make
    expected = [Outcome.MEMORIES.value, Outcome.NOTHING.value, Outcome.UNPARSEABLE.value]
    assert index.outcome[0, :3].tolist() == expected


def test_a_window_that_two_processes_have_written_counts_once(tmp_path: Path) -> None:
    write_frames(tmp_path, [said(0, FACT)])
    write_frames(tmp_path, [said(0, FACT)], rank=1)
    assert texts(read_completions(tmp_path, rows=1, signature=MINE), 1) == [[FACT]]


def test_without_a_journal_nothing_is_done(tmp_path: Path) -> None:
    index = read_completions(tmp_path, rows=3, signature=MINE)
    assert not index.is_done(0).any()
    assert index.is_done(1).all()
    assert index.damaged == []


@pytest.mark.parametrize("damage", ["a changed byte", "a torn tail", "rows of another run"])
def test_a_damaged_frame_is_passed_over_and_named(damage: str, tmp_path: Path) -> None:
    frames = [[said(0, FACT)], [said(1, NONE)], [said(2, FACT)]]
    if damage == "rows of another run":
        frames[1] = [said(7, NONE)]
    path = write_frames(tmp_path, *frames)
    content = path.read_bytes()
    if damage == "a changed byte":
        at = content.index(b"NONE")
        path.write_bytes(content[:at] + b"M" + content[at + 1 :])
    elif damage == "a torn tail":
        path.write_bytes(content[:-200])
    index = read_completions(tmp_path, rows=3, signature=MINE)
    lost = 2 if damage == "a torn tail" else 1
    assert np.flatnonzero(~index.is_done(0)).tolist() == [lost]
    assert len(index.damaged) == 1
    assert path.name in index.damaged[0]


def test_outputs_of_another_run_are_reported_and_ignored(tmp_path: Path) -> None:
    write_frames(tmp_path, [said(0, FACT)])
    with JournalWriter(tmp_path, rank=1, signature=ANOTHER_RUN) as writer:
        writer.append_rows(pa.RecordBatch.from_pylist([said(0, NOISE), said(1, NOISE)], schema=COMPLETION_SCHEMA))
    index = read_completions(tmp_path, rows=2, signature=MINE)
    assert texts(index, 2) == [[FACT], []]
    assert index.damaged == [f"{writer.path.name}: 1 frames of another run"]


STRANGE = {
    "vectors": vector_rows(np.asarray([1]), np.ones((1, 4), dtype=np.float32)),
    "a third attempt": pa.RecordBatch.from_pylist([said(1, FACT, attempt=2)], schema=COMPLETION_SCHEMA),
    "an attempt before the first": pa.RecordBatch.from_pylist([said(1, FACT, attempt=-1)], schema=COMPLETION_SCHEMA),
    "an unknown outcome": pa.RecordBatch.from_pylist([said(1, FACT, outcome=7)], schema=COMPLETION_SCHEMA),
    "neither text nor reason": pa.RecordBatch.from_pylist([said(1, FACT) | {"text": None}], schema=COMPLETION_SCHEMA),
    "text and reason": pa.RecordBatch.from_pylist([said(1, FACT, reason="why")], schema=COMPLETION_SCHEMA),
    "no length": pa.RecordBatch.from_pylist([said(1, FACT, num_tokens=None)], schema=COMPLETION_SCHEMA),
}


@pytest.mark.parametrize("batch", STRANGE.values(), ids=STRANGE)
def test_a_frame_of_something_else_is_damage(batch: pa.RecordBatch, tmp_path: Path) -> None:
    with JournalWriter(tmp_path, rank=0, signature=MINE) as writer:
        writer.append_rows(batch)
        writer.append_rows(pa.RecordBatch.from_pylist([said(0, FACT)], schema=COMPLETION_SCHEMA))
    index = read_completions(tmp_path, rows=2, signature=MINE)
    assert texts(index, 2) == [[FACT], []]
    assert index.damaged == [f"{writer.path.name}: a frame with other columns than this run's"]


@pytest.mark.slow
def test_three_hundred_damaged_files_give_right_texts(tmp_path: Path) -> None:
    """What is found is right, and what is not damaged is found; never an exception."""
    choose = Random(13)
    frames = [[said(n, f"- Likes tea {n}."), said(n + 1, f"- 喝茶 {n + 1}。" * n)] for n in range(0, 20, 2)]
    expected = [[row["text"]] for frame in frames for row in frame]
    spoiled = write_frames(tmp_path, *frames)
    write_frames(tmp_path, *([said(n, expected[n][0])] for n in range(5)), rank=1)
    (tmp_path / "other").mkdir()
    with JournalWriter(tmp_path / "other", rank=0, signature=ANOTHER_RUN) as writer:
        for n in range(20):
            writer.append_rows(pa.RecordBatch.from_pylist([said(n, "- Wrong.")], schema=COMPLETION_SCHEMA))
    whole, other = spoiled.read_bytes(), writer.path.read_bytes()
    for number in range(300):
        kind = choose.choice(DAMAGES)
        spoiled.write_bytes(damage(whole, kind, choose, splice=other))
        index = read_completions(tmp_path, rows=20, signature=MINE)
        found = texts(index, 20)
        assert all(text in ([], right) for text, right in zip(found, expected, strict=True)), number
        assert found[:5] == expected[:5], number


@pytest.mark.processes
def test_any_number_of_files_takes_few_descriptors(tmp_path: Path) -> None:
    """In a process that may hold 60 files open, 600 are read, and every text taken from them."""
    for number in range(600):
        write_frames(tmp_path, [said(number, f"- Likes tea {number}.")], rank=number)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from memvec.generation.completions import read_completions\n"
        "from tests.helpers.signatures import MINE\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))\n"
        "index = read_completions(Path(sys.argv[1]), rows=600, signature=MINE)\n"
        "assert all(index.outputs(row)[0].text == f'- Likes tea {row}.' for row in range(600))\n"
        "print('right')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
