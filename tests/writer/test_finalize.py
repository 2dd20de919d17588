"""A complete journal becomes Parquet in input order, once, whoever writes which part and however often it is tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from omegaconf import DictConfig

from memvec.data.prepared import read_signature
from memvec.errors import WriterError
from memvec.run.build import build_datamodule, build_model, run_folder
from memvec.run.folder import RunFolder
from memvec.writer import finalize
from memvec.writer.finalize import Finalizer
from memvec.writer.journal import JournalWriter, vector_rows
from tests.helpers.refusals import refused

D = 4
ROWS: list[dict[str, Any]] = [{"id": f"m/{n}", "text": f"text {n % 20}"} for n in range(25)]  # five are there twice
BAD = {"id": "bad", "text": None}


def read_rejected(path: Path) -> list[dict[str, object]]:
    """Reads `rejected.jsonl`."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def vector_of(row: int) -> list[float]:
    return [row + column / 10 for column in range(D)]


@pytest.fixture
def prepared(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]) -> Callable[..., RunFolder]:
    """Reads and tokenises rows as a run does, and leaves the computing to the test."""

    def prepare(rows: list[dict[str, Any]] | None = None, output: str = "run") -> RunFolder:
        cfg = tiny_config(write_jsonl([*ROWS, BAD] if rows is None else rows), output=output)
        folder = run_folder(cfg)
        module = build_model(cfg)
        datamodule = build_datamodule(cfg, module, folder)
        folder.claim(datamodule.fingerprint())
        datamodule.prepare_data()
        folder.release()
        return folder

    return prepare


def append(folder: RunFolder, rows: list[int], *, rank: int = 0) -> None:
    writer = JournalWriter(folder.journal, rank=rank, signature=read_signature(folder))
    writer.append_rows(vector_rows(np.asarray(rows), np.asarray([vector_of(row) for row in rows], dtype=np.float32)))
    writer.close()


def reject(folder: RunFolder, row: int, reason: str) -> None:
    writer = JournalWriter(folder.journal, rank=0, signature=read_signature(folder))
    writer.reject(row, reason, dimension=D)
    writer.close()


def read(folder: RunFolder) -> Dataset:
    files = [str(path) for path in sorted(folder.vectors.glob("*.parquet"))]
    return load_dataset("parquet", data_files=files, split="train")


def assert_complete(folder: RunFolder) -> None:
    """Every row is there, in order, with the vector that the first row of its text got."""
    result = read(folder)
    assert result["id"][:] == [row["id"] for row in ROWS]
    assert result["text"][:] == [row["text"] for row in ROWS]
    expected = np.asarray([vector_of(n % 20) for n in range(25)], dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(result["vector"][:], dtype=np.float32), expected)


@pytest.fixture
def two_rows_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalize, "BYTES_PER_FILE", 2 * (4 * D + 128))


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.vectors.iterdir())


def test_vectors_of_any_order_and_rank_come_out_in_input_order(prepared: Callable[..., RunFolder]) -> None:
    folder = prepared()
    append(folder, list(range(19, -1, -2)), rank=0)
    append(folder, list(range(0, 20, 2)), rank=1)
    finalizer = Finalizer(folder)
    finalizer.write_results()
    assert_complete(folder)
    assert files(folder) == ["part-00000-of-00001.parquet"]
    counts = finalizer.counts
    assert (counts.entries, counts.rejected, counts.unique, counts.dimension) == (25, 1, 20, D)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_each_layer_has_a_column_of_the_journals_dtype(dtype: str, prepared: Callable[..., RunFolder]) -> None:
    folder = prepared()
    vectors = np.asarray([vector_of(row) for row in range(20)], dtype=dtype)
    writer = JournalWriter(folder.journal, rank=0, signature=read_signature(folder))
    writer.append_rows(vector_rows(np.arange(20), vectors))
    writer.close()
    finalizer = Finalizer(folder, layer=[8, -1])
    finalizer.write_results()
    [path] = folder.vectors.iterdir()
    encodings = pq.ParquetFile(path).metadata.row_group(0).column(2).encodings
    assert ("BYTE_STREAM_SPLIT" in encodings) == (dtype == "float32")
    assert finalizer.counts.dimension == D // 2
    result = read(folder).with_format("arrow")[:]
    for name, part in (("vector_8", slice(0, D // 2)), ("vector_-1", slice(D // 2, D))):
        found = result.column(name).combine_chunks().flatten().to_numpy()
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.reshape(25, -1), vectors[np.arange(25) % 20, part])


def test_finalising_twice_changes_nothing(prepared: Callable[..., RunFolder], two_rows_a_file: None) -> None:
    folder = prepared()
    append(folder, list(range(20)))
    before: dict[str, tuple[int, bytes]] = {}
    for _ in range(2):
        finalizer = Finalizer(folder)
        finalizer.write_results()
        finalizer.write_rejected()
        after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.vectors.iterdir()}
        assert not before or after == before
        before = after
    assert len(read_rejected(folder.rejected)) == 1
    assert_complete(folder)


def test_a_part_that_is_there_is_kept(prepared: Callable[..., RunFolder], two_rows_a_file: None) -> None:
    folder = prepared()
    append(folder, list(range(20)))
    Finalizer(folder).write_results()
    kept, lost = (folder.vectors / f"part-0000{n}-of-00013.parquet" for n in (3, 4))
    written = kept.stat().st_mtime_ns
    lost.unlink()
    (folder.vectors / f".{lost.name}.1.partial").write_bytes(b"PAR1 what a killed process left")
    Finalizer(folder).write_results()
    assert kept.stat().st_mtime_ns == written
    assert_complete(folder)


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_ranks_write_every_part_once(
    world_size: int, prepared: Callable[..., RunFolder], two_rows_a_file: None
) -> None:
    folder = prepared()
    append(folder, list(range(20)))
    seen: set[str] = set()
    for rank in reversed(range(world_size)):
        Finalizer(folder).write_results(rank=rank, world_size=world_size)
        new = set(files(folder)) - seen
        assert len(new) == len(range(rank, 13, world_size))
        seen |= new
    assert seen == {f"part-{n:05d}-of-00013.parquet" for n in range(13)}
    assert_complete(folder)


def test_parts_hold_as_many_rows_as_fit(prepared: Callable[..., RunFolder], two_rows_a_file: None) -> None:
    folder = prepared()
    append(folder, list(range(20)))
    Finalizer(folder).write_results()
    rows = [pq.read_metadata(folder.vectors / name).num_rows for name in files(folder)]
    assert rows == [2] * 12 + [1]


def test_several_row_groups_keep_the_order(prepared: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalize, "ROWS_PER_GROUP", 7)
    folder = prepared()
    append(folder, list(range(20)))
    Finalizer(folder).write_results()
    assert pq.read_metadata(folder.vectors / files(folder)[0]).num_row_groups == 4
    assert_complete(folder)


@pytest.mark.parametrize(("there", "missing"), [([], 25), (list(range(19)), 1), (list(range(1, 20)), 2)])
def test_rows_without_a_vector_are_an_error_that_counts_them(
    there: list[int], missing: int, prepared: Callable[..., RunFolder]
) -> None:
    folder = prepared()
    if there:
        append(folder, there)
    with refused(
        WriterError, "run", found=f"{missing} of 25 entries have no vector yet", advice="run the same command again"
    ):
        Finalizer(folder)
    assert not folder.vectors.exists()


def test_rows_without_vectors_are_rejected_behind_the_inputs(
    prepared: Callable[..., RunFolder],
) -> None:
    folder = prepared()
    append(folder, [row for row in range(20) if row != 3])
    reject(folder, 3, "not finite")
    finalizer = Finalizer(folder)
    finalizer.write_results()
    finalizer.write_rejected()
    assert (finalizer.counts.entries, finalizer.counts.rejected) == (23, 3)
    assert read(folder)["id"][:] == [f"m/{n}" for n in range(25) if n % 20 != 3]
    rows = [(line["id"], line["row"], line["reason"]) for line in read_rejected(folder.rejected)]
    assert [name for name, _, _ in rows] == ["bad", "m/3", "m/23"]  # the second has the first one's text
    assert rows[1:] == [("m/3", 4, "not finite"), ("m/23", 24, "not finite")]


def test_a_run_without_any_vector_is_an_error_that_says_why(prepared: Callable[..., RunFolder]) -> None:
    folder = prepared([{"id": "a", "text": "tea"}])
    reject(folder, 0, "not finite")
    with refused(WriterError, "run", found="no entry has a vector: not finite"):
        Finalizer(folder)


def test_a_row_computed_later_counts_though_given_up_before(prepared: Callable[..., RunFolder]) -> None:
    folder = prepared([{"id": "a", "text": "tea"}])
    reject(folder, 0, "out of memory")
    append(folder, [0])
    finalizer = Finalizer(folder)
    finalizer.write_results()
    finalizer.write_rejected()
    assert (finalizer.counts.entries, finalizer.counts.rejected) == (1, 0)
    assert read_rejected(folder.rejected) == []


@pytest.mark.parametrize("keep_text", [True, False])
def test_the_text_is_kept_where_it_is_wanted(keep_text: bool, prepared: Callable[..., RunFolder]) -> None:
    folder = prepared()
    append(folder, list(range(20)))
    Finalizer(folder, keep_text=keep_text).write_results()
    columns = ["id", "text", "vector", "num_tokens", "prompt_digest"]
    assert read(folder).column_names == (columns if keep_text else [name for name in columns if name != "text"])


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(prepared: Callable[..., RunFolder]) -> None:
    folder = prepared()
    append(folder, list(range(20)))
    folder.vectors.write_text("a file in its place")
    with refused(WriterError, "vectors", found="cannot be written") as caught:
        Finalizer(folder).write_results()
    assert "\n" not in str(caught.value)


def test_rejected_lines_are_json_whatever_the_ids_hold(prepared: Callable[..., RunFolder]) -> None:
    names = ["\ud800", "new\nline", "雨", '"', "\u2028"]
    folder = prepared([{"id": "a", "text": "tea"}, *({"id": name, "text": " "} for name in names)])
    append(folder, [0])
    Finalizer(folder).write_rejected()
    lines = folder.rejected.read_bytes().decode("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == names
