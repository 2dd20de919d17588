"""CSV of every delimiter and encoding is read as it is meant, or refused; never one column that is two."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from memvec.data.formats.files import TextFormat, file_format
from memvec.data.reader import read_file
from memvec.errors import ConfigError, InputError
from tests.helpers.refusals import refused

ROWS = [
    ("m1", "likes tea, coffee; and | pipes\tand tabs", "2024"),
    ("m2", 'says "hi"; often', "x,y"),
    ("m3", "two\nlines, one; text", ""),
    ("m4", "养了一只猫；团子", "9"),
]
DELIMITERS = [",", ";", "\t", "|"]


def rows_of(path: Path, text_column: str = "text", id_column: str | None = "id", **options: Any) -> list[Any]:
    records = read_file(path, text_column=text_column, id_column=id_column, text_format=TextFormat(**options))
    return [record[1:] for record in records]


def written(rows: Sequence[Sequence[str]], delimiter: str = ",", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows([("id", "text", "note"), *rows])
    return stream.getvalue()


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS * 700], ids=["four", "one", "many"])
def test_the_delimiter_is_found(delimiter: str, quoting: int, rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(written(rows, delimiter, quoting), encoding="utf-8", newline="")
    assert rows_of(tmp_path / "a.csv") == [(name, text) for name, text, _ in rows]


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_random_tables_are_taken_apart_rightly(delimiter: str, tmp_path: Path) -> None:
    draw = random.Random(7)
    for _ in range(60):
        words = [",", ";", "\t", "|", '"', "\n", "tea", " ", "茶", "1", "'"]
        rows = [
            (f"m{n}", "".join(draw.choices(words, k=draw.randrange(1, 12))), "n") for n in range(draw.randrange(1, 9))
        ]
        (tmp_path / "a.csv").write_text(written(rows, delimiter), encoding="utf-8", newline="")
        assert rows_of(tmp_path / "a.csv") == [(name, text) for name, text, _ in rows]


def test_too_many_fields_do_not_change_the_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;tea\n2;tea; no coffee\n3;tea, and more\n", encoding="utf-8")
    found = rows_of(tmp_path / "a.csv")
    assert found[0] == (1, "tea")
    assert "3 fields" in found[1][1].reason
    assert found[2] == (3, "tea, and more")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_columns_are_never_embedded_as_one(name: str, delimiter: str, end: str, tmp_path: Path) -> None:
    content = f"text{delimiter}id{end}likes tea{delimiter}1{end}likes milk{delimiter}2{end}"
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    with refused(InputError, tmp_path / name) as caught:
        rows_of(tmp_path / name, text_column=f"text{delimiter}id")
    assert "columns found: text, id" in caught.value.found or "set data.delimiter" in caught.value.advice
    if name == "a.csv":
        assert rows_of(tmp_path / name) == [(1, "likes tea"), (2, "likes milk")]
    assert rows_of(tmp_path / name, delimiter=delimiter) == [(1, "likes tea"), (2, "likes milk")]


def test_one_column_whose_texts_have_delimiters_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\nlikes tea, milk\nlikes; cats\n", encoding="utf-8")
    assert [text for _, text in rows_of(tmp_path / "a.tsv", id_column=None)] == ["likes tea, milk", "likes; cats"]
    (tmp_path / "a.csv").write_text("text\nlikes; tea\nlikes | milk\n", encoding="utf-8")
    assert [text for _, text in rows_of(tmp_path / "a.csv", id_column=None)] == ["likes; tea", "likes | milk"]


def test_the_hint_about_a_missing_column_names_the_real_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("key;memory\n1;tea, green\n", encoding="utf-8")
    with refused(
        InputError, "a.csv", found="no column 'text'; columns found: key, memory", advice="set data.text_column"
    ):
        rows_of(tmp_path / "a.csv")


def test_a_delimiter_of_ones_own_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id~text\n1~a;b,c\n", encoding="utf-8")
    assert rows_of(tmp_path / "a.csv", delimiter="~") == [(1, "a;b,c")]
    (tmp_path / "b.csv").write_text("a;b\nx;y\n", encoding="utf-8")
    assert rows_of(tmp_path / "b.csv", "a;b", None, delimiter="comma")[0][1] == "x;y"


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", "commas"])
def test_what_is_no_delimiter_is_refused(delimiter: str) -> None:
    with refused(ConfigError, "data.delimiter", delimiter, allowed="null, comma, semicolon, tab"):
        TextFormat(delimiter=delimiter)


# --- encodings

ENCODINGS = [
    ("utf-8", codecs.BOM_UTF8),
    ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE),
    ("utf-32-le", codecs.BOM_UTF32_LE),
    ("utf-32-be", codecs.BOM_UTF32_BE),
]
CONTENTS = {
    "a.csv": 'id,text\n"m1","猫, 茶\nਊ"\nm2,b\n',
    "a.tsv": "id\ttext\nm1\t猫, 茶 ਊ\nm2\tb\n",
    "a.txt": "猫, 茶 ਊ\nb\n",
    "a.jsonl": '{"id": "m1", "text": "猫, 茶 ਊ"}\n{"id": "m2", "text": "b"}\n',
    "a.json": '[{"id": "m1", "text": "猫, 茶 ਊ"},\n{"id": "m2", "text": "b"}]',
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize(("encoding", "mark"), ENCODINGS, ids=[name for name, _ in ENCODINGS])
def test_a_byte_order_mark_says_the_encoding(name: str, encoding: str, mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / name).write_text(CONTENTS[name], encoding="utf-8", newline="")
    (tmp_path / name).write_bytes(mark + CONTENTS[name].encode(encoding))
    assert rows_of(tmp_path / name) == rows_of(tmp_path / "plain" / name)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le", "utf-16", "utf-8", "utf-8-sig", "utf-32-be"])
def test_an_encoding_can_be_named(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / name).write_text(CONTENTS[name], encoding="utf-8", newline="")
    (tmp_path / name).write_bytes(CONTENTS[name].encode(encoding))
    assert rows_of(tmp_path / name, encoding=encoding) == rows_of(tmp_path / "plain" / name)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp037"])
def test_encodings_of_one_byte_are_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id;text\n1;été, ça\n".encode(encoding))
    assert rows_of(tmp_path / "a.csv", encoding=encoding) == [(1, "été, ça")]


@pytest.mark.parametrize("name", CONTENTS)
def test_an_encoding_that_does_not_fit_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name].encode("gb18030"))
    with refused(InputError, found="not UTF-8"):
        rows_of(tmp_path / name)
    (tmp_path / name).write_bytes(CONTENTS[name].encode("utf-16")[:-1])
    with refused(InputError, re.compile(name), found="not UTF-16"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_not_read_as_something_else(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(("x" * 40 + CONTENTS[name]).encode(encoding))
    with refused(InputError, name, found="looks like UTF-16", advice=f"set data.encoding={encoding}"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf9", "rot13", "hex", "", 7, "a\x00b"])
def test_what_is_no_encoding_is_refused(encoding: Any) -> None:
    with refused(ConfigError, "data.encoding", encoding, found="no such encoding"):
        TextFormat(encoding=encoding)


# --- compressions

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", [*CONTENTS, "a.ndjson"])
def test_compressed_files_read_like_plain_ones(name: str, suffix: str, tmp_path: Path) -> None:
    content = CONTENTS[name.replace("nd", "").replace("json", "jsonl") if "nd" in name else name]
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    (tmp_path / f"{name}{suffix}").write_bytes(COMPRESS[suffix](content.encode()))
    assert rows_of(tmp_path / f"{name}{suffix}") == rows_of(tmp_path / name)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_several_compressed_streams_are_one_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](f"{n}\n".encode()) for n in range(3)))
    assert [text for _, text in rows_of(path)] == ["0", "1", "2"]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kept", [3, 0.5, 0.98])
def test_a_compressed_file_that_is_cut_is_an_error(suffix: str, kept: float, tmp_path: Path) -> None:
    content = COMPRESS[suffix]("".join(f"{n * 7919} tea\n" for n in range(20_000)).encode())
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with refused(InputError, path, found="cannot be read: "):
        rows_of(path)


def test_names_say_the_format() -> None:
    named = {
        "a.ndjson": ".jsonl",
        "a.NDJSON.ZST": ".jsonl",
        "a.feather": ".arrow",
        "a.csv.xz": ".csv",
        "a.parquet.gz": None,
        "a.feather.zst": None,
        "a.zst": None,
        "a.tar.gz": None,
        "a": None,
    }
    assert {name: file_format(Path(name)) for name in named} == named
