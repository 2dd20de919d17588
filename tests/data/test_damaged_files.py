"""Damaged input: three hundred files of each kind give the right rows or one line, never a signal or a traceback."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.helpers.input_reader import InputReader, input_reader

FILES = 300
ROWS = 40


def table() -> dict[str, list[Any]]:
    texts = [f'She likes tea {number}, 茶; "quoted"\nand more ' * (1 + number % 5) for number in range(ROWS)]
    inner = [{"text": text, "tags": ["a", text[:9]]} if number % 6 else None for number, text in enumerate(texts)]
    return {
        "text": [text if number % 9 else None for number, text in enumerate(texts)],
        "id": [f"m/{number}" for number in range(ROWS)],
        "memory": inner,
        "kind": [("fact", "event")[number % 2] for number in range(ROWS)],
    }


def arrow_table() -> pa.Table:
    rows = pa.table(table())
    at = rows.schema.names.index("kind")
    rows = rows.set_column(at, "kind", rows.column("kind").dictionary_encode())
    views = rows.column("text").combine_chunks().cast(pa.string_view())
    return rows.append_column("view", views).append_column("large", rows.column("text").cast(pa.large_string()))


def save_stream(path: Path) -> None:
    rows = arrow_table()
    with pa.ipc.new_stream(str(path), rows.schema) as writer:
        writer.write_table(rows, max_chunksize=16)


def save_file(path: Path) -> None:
    rows = arrow_table()
    with pa.ipc.new_file(str(path), rows.schema) as writer:
        writer.write_table(rows, max_chunksize=16)


def save_compressed(path: Path) -> None:
    pyarrow.feather.write_feather(arrow_table().drop_columns(["view"]), str(path), compression="zstd", chunksize=16)


def save_parquet(path: Path) -> None:
    pq.write_table(pa.table(table()), path, row_group_size=16)


def save_plain_parquet(path: Path) -> None:
    options = {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"}
    pq.write_table(pa.table(table()), path, row_group_size=16, **options)


def save_json(path: Path) -> None:
    columns = table()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows if path.stem == "array" else {"data": rows}, indent=1), encoding="utf-8")


def save_csv(path: Path) -> None:
    columns = {name: values for name, values in table().items() if name in ("text", "id", "kind")}
    with path.open("w", encoding="utf-16" if path.stem == "wide" else "utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=";" if path.stem == "semicolon" else ",")
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])


def save_dataset(path: Path) -> None:
    Dataset(pa.table(table())).save_to_disk(str(path))


KINDS: dict[str, dict[str, Callable[[Path], None]]] = {
    "Arrow": {"stream.arrow": save_stream, "file.arrow": save_file, "zstd.feather": save_compressed},
    "Parquet": {"snappy.parquet": save_parquet, "plain.parquet": save_plain_parquet},
    "JSON": {"lines.jsonl": save_json, "array.json": save_json, "wrapped.json": save_json},
    "CSV": {"comma.csv": save_csv, "semicolon.csv": save_csv, "wide.csv": save_csv},
    "datasets": {"saved": save_dataset},
}
COLUMNS = {
    "Arrow": [["text", "id"], ["memory.text", "kind", "memory"], ["view", "large"], ["large", "id", "memory"]],
    "Parquet": [["text", "id"], ["memory.text", "kind", "memory"]],
    "JSON": [["text", "id"], ["memory.text", "kind"]],
    "CSV": [["text", "id"], ["id", None, "kind"]],
    "datasets": [["text", "id"], ["memory.text", "kind", "memory"]],
}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Returns the content cut, with bits flipped, a stretch zeroed or overwritten, or a part put elsewhere."""
    at, size = draw.randrange(len(content)), draw.randrange(1, 64)
    changed = bytearray(content)
    match draw.randrange(6):
        case 0:
            return content[:at]
        case 1:
            for _ in range(draw.randrange(1, 9)):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        case 2:
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        case 3:
            changed[at : at + size] = draw.randbytes(len(changed[at : at + size]))
        case 4:
            other = draw.randrange(len(content))
            changed[at:at] = content[other : other + size]
        case _:
            at -= at % 4  # numbers in binary formats begin there: a large or a negative one
            changed[at : at + 4] = draw.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x01\x00"])
    return bytes(changed)


@pytest.fixture(scope="module")
def reader() -> Iterator[InputReader]:
    with input_reader() as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_rows_or_one_line(kind: str, reader: InputReader, tmp_path: Path) -> None:
    draw = random.Random(13)
    contents: dict[str, dict[Path, bytes]] = {}
    for name, save in KINDS[kind].items():
        save(tmp_path / name)
        paths = [tmp_path / name] if (tmp_path / name).is_file() else sorted((tmp_path / name).iterdir())
        contents[name] = {path: path.read_bytes() for path in paths}
        for columns in COLUMNS[kind]:
            if "view" not in columns or name != "zstd.feather":
                assert reader.read(tmp_path / name, columns) == {"rows": ROWS}
    answers: Counter[str] = Counter()
    for number in range(FILES):
        name = draw.choice(list(contents))
        path = draw.choice(list(contents[name]))
        columns = draw.choice(COLUMNS[kind])
        path.unlink()  # another file each time: what a reader has mapped must not change under it
        path.write_bytes(damaged(contents[name][path], draw))
        answer = reader.read(tmp_path / name, columns)
        assert set(answer) <= {"rows", "error"}, (name, number, columns, answer)
        assert "\n" not in answer.get("error", ""), answer
        assert answer.get("rows", 0) <= 2 * ROWS + 2
        answers[next(iter(answer))] += 1
        path.unlink()
        path.write_bytes(contents[name][path])
    assert min(answers["error"], answers["rows"]) > 10, answers
