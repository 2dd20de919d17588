"""Parquet, Arrow and datasets: ids of every kind, fields within objects, and nothing touched before it is validated."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from memvec.data.formats.fields import MISSING
from memvec.data.reader import read_dataset, read_file
from memvec.data.source import Source, find_sources
from memvec.errors import InputError
from tests.helpers.input_reader import InputReader, input_reader
from tests.helpers.refusals import refused


def save_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def save_dataset(path: Path, table: pa.Table) -> None:
    Dataset(table).save_to_disk(str(path))


SAVERS: dict[str, Callable[[Path, pa.Table], None]] = {
    "a.parquet": lambda path, table: pq.write_table(table, path),
    "a.arrow": save_arrow,
    "a.feather": lambda path, table: pyarrow.feather.write_feather(table, str(path)),
    "saved": save_dataset,
}
FILES = [name for name in SAVERS if name != "saved"]


def fields(
    path: Path, text_column: str = "text", id_column: str | None = "id", more: tuple[str, ...] = ()
) -> list[Any]:
    (source,) = find_sources(str(path))
    assert source.digest(columns=(text_column, id_column, *more))
    return [record[1:] for record in source.records(text_column=text_column, id_column=id_column, more=more)]


# --- ids


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [pa.uuid(), pa.binary(16)], ids=["Arrow's type", "16 bytes"])
def test_uuids_are_ids(name: str, kind: pa.DataType, tmp_path: Path) -> None:
    ids = [uuid.UUID(int=5), uuid.UUID(int=2**127 + 3)]
    column = pa.array([*(one.bytes for one in ids), None], kind)
    SAVERS[name](tmp_path / name, pa.table({"id": column, "text": ["a", "b", "c"]}))
    assert fields(tmp_path / name) == [(str(ids[0]), "a"), (str(ids[1]), "b"), (None, "c")]


@pytest.mark.parametrize("name", FILES)
def test_other_bytes_are_no_ids(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, pa.table({"id": pa.array([b"a" * 16]), "text": ["a"]}))
    assert fields(tmp_path / name) == [(b"a" * 16, "a")]


# --- fields within objects


@pytest.mark.parametrize("name", SAVERS)
def test_a_name_with_dots_is_a_field_within_an_object(name: str, tmp_path: Path) -> None:
    inner = [{"text": "a", "by": {"id": 1}, "other": 0}, {"text": None, "by": None, "other": 0}, None]
    SAVERS[name](tmp_path / name, pa.table({"memory": inner, "note": ["x", "y", "z"]}))
    found = fields(tmp_path / name, "memory.text", "memory.by.id", ("note", "memory.no", "memory"))
    expected = [(1, "a", "x", MISSING), (None, None, "y", MISSING), (None, None, "z", MISSING)]
    assert [row[:-1] for row in found] == expected
    assert [row[-1] for row in found] == inner
    with refused(InputError, found="no column 'memory.no'; columns found: memory.text, memory.by, memory.other, n"):
        fields(tmp_path / name, "memory.no", None)


@pytest.mark.parametrize("name", SAVERS)
def test_a_column_that_is_literally_called_so_wins(name: str, tmp_path: Path) -> None:
    table = pa.table({"memory": [{"text": "inner", "n": 1}], "memory.text": ["literal"], "id": [7]})
    SAVERS[name](tmp_path / name, table)
    assert fields(tmp_path / name, "memory.text") == [(7, "literal")]
    assert fields(tmp_path / name, "memory.text", "memory.n") == [(1, "literal")]


@pytest.mark.parametrize("name", SAVERS)
def test_fields_of_objects_are_read_past_the_first_batch(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}"} if number % 7 else None for number in range(25_000)]
    SAVERS[name](tmp_path / name, pa.table({"memory": rows}))
    assert [text for _, text in fields(tmp_path / name, "memory.text", None)] == [row and row["text"] for row in rows]


def test_the_digest_of_a_dataset_covers_the_field_that_is_read() -> None:
    def digest(text: str) -> str:
        return Source("here", Dataset.from_dict({"memory": [{"text": text}]})).digest(columns=("memory.text", None))

    assert digest("a") == digest("a") != digest("b")


# --- wrong offsets


def broken_strings(kind: str) -> pa.Array:
    """Returns three strings of which one begins far outside of its buffer."""
    values = pa.py_buffer(b"abc")
    if kind == "large_string":
        return pa.Array.from_buffers(pa.large_string(), 3, [None, pa.array([0, 1, 2**60, 3]).buffers()[1], values])
    offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 1, 2**31 - 9, 3)))
    return pa.Array.from_buffers(pa.string(), 3, [None, offsets, values])


def broken(kind: str) -> pa.Array:
    good = pa.array(["a", "b", "c"])
    if kind == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array([0, 10**6, 1], pa.int32()), good, safe=False)
    if kind == "struct":
        return pa.StructArray.from_arrays([broken_strings("string")], ["text"])
    if kind == "list":
        offsets = broken_strings("string").buffers()[1]
        return pa.ListArray.from_buffers(pa.list_(pa.string()), 3, [None, offsets], -1, 0, [good])
    return broken_strings(kind)


@pytest.fixture(scope="module")
def reader() -> Iterator[InputReader]:
    with input_reader() as started:
        yield started


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow", "saved"])
@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "struct", "list"])
def test_a_wrong_offset_is_one_line_and_no_signal(name: str, kind: str, reader: InputReader, tmp_path: Path) -> None:
    table, path = pa.table({"text": broken(kind), "id": [1, 2, 3]}), tmp_path / name
    if name == "saved":
        nulls = pa.array([None] * 3, table.schema.field("text").type)
        save_dataset(path, pa.table({"text": nulls, "id": [1, 2, 3]}))
        (data,) = path.glob("data-*.arrow")
        save_arrow(data, table)
    elif name == "stream.arrow":
        save_arrow(path, table)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    for digest in (False, True):
        answer = reader.read(path, ["text.text" if kind == "struct" else "text", "id"], digest=digest)
        assert set(answer) == {"error"}, answer
        assert "\n" not in answer["error"]


def test_rows_in_front_of_a_broken_batch_are_read(tmp_path: Path) -> None:
    schema = pa.schema({"text": pa.string()})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(["a", "b"])], schema))
        writer.write_batch(pa.record_batch([broken_strings("string")], schema))
    rows = read_file(tmp_path / "a.arrow", text_column="text", id_column=None)
    assert [next(rows)[2] for _ in range(2)] == ["a", "b"]
    with refused(InputError, "a.arrow", found="the 3 rows from row 2 on cannot be read"):
        next(rows)


def test_a_column_that_is_not_read_may_be_broken(tmp_path: Path) -> None:
    save_arrow(tmp_path / "a.arrow", pa.table({"text": ["a", "b", "c"], "junk": broken_strings("string")}))
    assert [text for _, text in fields(tmp_path / "a.arrow", id_column=None)] == ["a", "b", "c"]


def test_rows_of_a_selection_come_in_its_order() -> None:
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "id": [1, 2, 3]}).select([2, 0])
    found = read_dataset(dataset, name="here", text_column="text", id_column="id")
    assert list(found) == [(0, 3, "c"), (1, 1, "a")]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_text_that_many_rows_share_fills_no_memory(name: str, tmp_path: Path) -> None:
    positions = pa.array([0] * 20_000, pa.int32())
    for megabytes, answer in ((1, {"rows": 200}), (130, {"error": "a string longer than 128 MB"})):
        texts = pa.DictionaryArray.from_arrays(positions, pa.array(["a" * (megabytes * 2**20)]))
        SAVERS[name](tmp_path / name, pa.table({"text": texts}))
        with input_reader() as reader:
            found = reader.read(tmp_path / name, ["text", None], limit=200, digest=False)
            assert reader.peak < 1500
        assert found.get("rows") == answer.get("rows")
        assert found.get("error", "").endswith(str(answer.get("error", "")))
