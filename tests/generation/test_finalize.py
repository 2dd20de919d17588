"""A complete journal of outputs becomes memories in order, every output and every failure, however often tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig

from memvec.data.reader import read_file
from memvec.errors import WriterError
from memvec.generation import finalize
from memvec.generation.build import build_conversations, build_generator
from memvec.generation.finalize import GenerationCounts, MemoryFinalizer
from memvec.run.build import run_folder
from memvec.run.folder import RunFolder
from tests.generation.frames import no_output, said, write_frames
from tests.helpers.conversations import read_lines
from tests.helpers.refusals import refused

# Cut into windows of two messages, of which the next one begins with the last.
LONG: dict[str, Any] = {
    "id": "ann",
    "date": "4 May",
    "messages": [{"speaker": "Ann", "text": f"Message {n} has these many words in it."} for n in range(4)],
}
SHORT: dict[str, Any] = {"id": "bob", "messages": [{"role": "user", "content": "Hello, I am back."}]}
SAME: dict[str, Any] = {**SHORT, "id": "eve"}
BAD: dict[str, Any] = {"id": "bad", "messages": []}
PROVENANCE = ["conversation_id", "message_start", "message_end", "date"]
RESULTS = ["failed.jsonl", "memories.jsonl", "memories.parquet", "raw.jsonl", "rejected.jsonl"]
WINDOWS = ["ann-0", "ann-1", "ann-2", "bob-0", "eve-0"]  # of LONG, SHORT and SAME; the last two have equal prompts

Prepare = Callable[..., RunFolder]


@pytest.fixture
def prepared(write_conversations: Callable[..., Path], tiny_generation: Callable[..., DictConfig]) -> Prepare:
    """Reads, cuts and tokenises conversations as a run does, and leaves the answers to the test."""

    def prepare(rows: list[dict[str, Any]] | None = None, output: str = "run") -> RunFolder:
        path = write_conversations([LONG, BAD, SHORT, SAME] if rows is None else rows)
        cfg = tiny_generation(path, "data.window_tokens=85", "data.overlap=1", output=output)
        folder = run_folder(cfg)
        module = build_generator(cfg)
        datamodule = build_conversations(cfg, module, folder)
        folder.claim(datamodule.fingerprint())
        datamodule.prepare_data()
        folder.release()
        folder.instructions = module.prompt.instructions  # type: ignore[attr-defined]
        return folder

    return prepare


def finish(folder: RunFolder) -> GenerationCounts:
    finalizer = MemoryFinalizer(folder, folder.instructions)  # type: ignore[attr-defined]
    finalizer.write_results()
    finalizer.write_rejected()
    return finalizer.counts


def texts(path: Path) -> list[tuple[str, str]]:
    return [(line["id"], line["text"]) for line in read_lines(path)]


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()}


def test_memories_come_in_input_order_and_say_where_from(prepared: Prepare) -> None:
    folder = prepared()
    write_frames(folder.journal, [said(3, "- Bob is back.")], [said(2, "- C one.\n- C two.")])
    write_frames(folder.journal, [said(1, "- B one."), said(0, "- A one.")], rank=1)
    counts = finish(folder)
    found = read_lines(folder.memory_lines)
    assert [list(line.values()) for line in found] == [
        ["ann-0-0", "A one.", "ann", 0, 1, "4 May"],
        ["ann-1-0", "B one.", "ann", 1, 2, "4 May"],
        ["ann-2-0", "C one.", "ann", 2, 3, "4 May"],
        ["ann-2-1", "C two.", "ann", 2, 3, "4 May"],
        ["bob-0-0", "Bob is back.", "bob", 0, 0, None],
        ["eve-0-0", "Bob is back.", "eve", 0, 0, None],  # of the equal window, which was asked about once
    ]
    assert list(found[0]) == ["id", "text", *PROVENANCE]
    assert pq.read_table(folder.memories).to_pylist() == found
    assert (counts.conversations, counts.rejected, counts.windows, counts.memories) == (3, 1, 5, 6)
    assert sorted(contents(folder)) == RESULTS


def test_a_conversations_repeated_memory_is_left_out(prepared: Prepare) -> None:
    folder = prepared()
    write_frames(folder.journal, [said(0, "- Likes tea.\n- Has a cat."), said(1, '["likes TEA"]')])
    write_frames(folder.journal, [said(2, "- Has a cat!\n- Has a dog."), said(3, "- Likes tea.")])
    counts = finish(folder)
    assert texts(folder.memory_lines) == [
        ("ann-0-0", "Likes tea."),
        ("ann-0-1", "Has a cat."),
        ("ann-2-1", "Has a dog."),
        ("bob-0-0", "Likes tea."),  # another conversation's
        ("eve-0-0", "Likes tea."),
    ]
    assert (counts.memories, counts.duplicates, counts.with_memories) == (5, 2, 5)


def test_nothing_and_what_is_not_understood_are_kept_apart(prepared: Prepare) -> None:
    folder = prepared()
    write_frames(
        folder.journal,
        [said(0, "NONE"), said(1, "###", is_cut=True), said(2, "- Likes tea."), no_output(3, "no room")],
        [said(1, "```", attempt=1)],
    )
    counts = finish(folder)
    assert texts(folder.memory_lines) == [("ann-2-0", "Likes tea.")]
    failed = read_lines(folder.failed)
    assert [(line["id"], line["text"]) for line in failed] == [("ann-1", "```"), ("bob-0", ""), ("eve-0", "")]
    reasons = [line["reason"] for line in failed]
    assert reasons == ["neither JSON nor a list nor lines of memories", "no room", "no room"]
    assert (counts.with_memories, counts.nothing, counts.failed, counts.retried, counts.cut) == (1, 1, 3, 1, 0)


def test_every_attempt_stands_in_raw_and_the_second_one_counts(prepared: Prepare) -> None:
    folder = prepared()
    write_frames(folder.journal, [said(n, "###", num_tokens=5, is_cut=True) for n in range(4)])
    write_frames(folder.journal, [said(0, "- Likes tea.", attempt=1), said(1, "NONE", attempt=1)])
    write_frames(folder.journal, [said(2, "~~~", attempt=1), no_output(3, "no room", attempt=1)])
    counts = finish(folder)
    raw = read_lines(folder.raw)
    assert [(line["id"], line["text"], line["outcome"], line["attempt"]) for line in raw] == [
        ("ann-0", "###", "unparseable", 1),
        ("ann-0#2", "- Likes tea.", "memories", 2),
        ("ann-1", "###", "unparseable", 1),
        ("ann-1#2", "NONE", "nothing", 2),
        ("ann-2", "###", "unparseable", 1),
        ("ann-2#2", "~~~", "unparseable", 2),
        ("bob-0", "###", "unparseable", 1),
        ("eve-0", "###", "unparseable", 1),
    ]
    assert [raw[0][name] for name in ("num_tokens", "is_cut", *PROVENANCE)] == [5, True, "ann", 0, 1, "4 May"]
    assert texts(folder.memory_lines) == [("ann-0-0", "Likes tea.")]
    assert [name for name, _ in texts(folder.failed)] == ["ann-2", "bob-0", "eve-0"]
    # The last two were cut in the only attempt that gave an output.
    assert (counts.nothing, counts.failed, counts.retried, counts.cut) == (1, 3, 3, 2)


def test_a_cut_output_keeps_its_finished_memories(prepared: Prepare) -> None:
    folder = prepared([SHORT])
    write_frames(folder.journal, [said(0, "- Likes tea.\n- Has a c", is_cut=True)])
    assert finish(folder).cut == 1
    assert texts(folder.memory_lines) == [("bob-0-0", "Likes tea.")]
    assert texts(folder.raw) == [("bob-0", "- Likes tea.\n- Has a c")]


def test_where_windows_are_missing_nothing_is_written(prepared: Prepare) -> None:
    folder = prepared()
    path = write_frames(
        folder.journal, [said(0, "- A one.")], [said(1, "- B one."), said(2, "- C one.")], [said(3, "- D one.")]
    )
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"- B one.")] + b"X" + content[content.index(b"- B one.") + 1 :])
    with refused(WriterError, "run", found="2 of 5 windows have no output yet", advice="run the same command again"):
        finish(folder)
    write_frames(folder.journal, [said(1, "- B one."), said(2, "- C one.")])  # as the next attempt does
    finish(folder)
    assert [text for _, text in texts(folder.memory_lines)][1:3] == ["B one.", "C one."]


def test_finalising_again_gives_the_same_files(prepared: Prepare) -> None:
    folder = prepared()
    write_frames(folder.journal, [said(0, "- A one.\n- A two."), said(1, "###"), said(2, "NONE"), said(3, "- 喝茶。")])
    write_frames(folder.journal, [said(1, "###", attempt=1)])
    finish(folder)
    expected = contents(folder)
    folder.memories.unlink()  # renamed last
    folder.raw.write_text("of an older version", encoding="utf-8")
    finish(folder)
    assert contents(folder) == expected


def test_ids_that_are_integers_stay_integers(prepared: Prepare) -> None:
    folder = prepared([{**SHORT, "id": 7}, {**LONG, "id": 9}])
    write_frames(folder.journal, [said(n, f"- Likes tea {n}.") for n in range(4)])
    finish(folder)
    assert {line["conversation_id"] for path in (folder.memory_lines, folder.raw) for line in read_lines(path)} == {
        7,
        9,
    }
    table = pq.read_table(folder.memories)
    assert table.schema.field("conversation_id").type == "int64"
    assert table.column("id").to_pylist()[:2] == ["7-0-0", "9-0-0"]


def test_many_memories_are_written_in_row_groups(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalize, "ROWS_PER_GROUP", 2)
    folder = prepared()
    write_frames(folder.journal, [said(n, f"- Fact {n} one.\n- Fact {n} two.") for n in range(4)])
    finish(folder)
    assert pq.ParquetFile(folder.memories).num_row_groups > 2
    assert pq.read_table(folder.memories).to_pylist() == read_lines(folder.memory_lines)


def test_every_file_can_be_the_input_of_vectors(prepared: Prepare) -> None:
    folder = prepared()
    strange = '- Says \u2028 “喝茶” \\u0041, \x85 and "so".'
    write_frames(folder.journal, [said(0, strange), said(1, "###"), said(2, "- B."), said(3, "- Is back.")])
    write_frames(folder.journal, [said(1, "# #", attempt=1)])
    finish(folder)
    for path in (folder.memories, folder.memory_lines, folder.raw, folder.failed):
        rows = [(name, text) for _, name, text in read_file(path, text_column="text", id_column="id")]
        written = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else read_lines(path)
        assert rows == [(line["id"], line["text"]) for line in written]
        assert rows
        assert len({name for name, _ in rows}) == len(rows)
    loaded = datasets.load_dataset("parquet", data_files=str(folder.memories), split="train")
    assert loaded.column_names == ["id", "text", *PROVENANCE]
    assert loaded.features["message_start"] == datasets.Value("int32")
    assert pd.read_parquet(folder.memories)["text"].tolist() == [text for _, text in texts(folder.memory_lines)]


def test_conversations_that_could_not_be_used_are_named(prepared: Prepare) -> None:
    folder = prepared()
    write_frames(folder.journal, [said(n, "NONE") for n in range(4)])
    counts = finish(folder)
    (line,) = read_lines(folder.rejected)
    assert (line["id"], line["row"], counts.rejected) == ("bad", 2, 1)
    assert line["reason"]
    # No memory at all is a result too: empty files, with all their columns.
    assert counts.memories == 0
    assert pq.read_table(folder.memories).column_names == ["id", "text", *PROVENANCE]
    assert folder.memory_lines.read_bytes() == folder.failed.read_bytes() == b""


def test_a_folder_that_cannot_be_written_is_one_line(prepared: Prepare) -> None:
    folder = prepared([SHORT])
    write_frames(folder.journal, [said(0, "NONE")])
    folder.raw.mkdir()  # a rename onto a folder fails, whoever runs the test
    (folder.raw / "in the way").touch()
    with refused(WriterError, "raw.jsonl", found="cannot be written: "):
        finish(folder)
    assert not folder.manifest.exists()
    assert [path.name for path in folder.root.glob(".*")] == []
