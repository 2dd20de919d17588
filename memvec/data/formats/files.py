"""A file's bytes and characters: which format its name says, decompressed, decoded, in lines of bounded length.

In: a path. Out: its format, a binary stream, a text stream, or numbered lines.

Why a bound on lines: a compressed file of 2 MB may hold one line of 2 GB. Why only regular files: a pipe or a device
may never end, and a run reads its input twice.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from memvec.errors import ConfigError, InputError

TEXT_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
ALIASES = {".ndjson": ".jsonl", ".feather": ".arrow"}
SUFFIXES = (*TEXT_FORMATS, ".parquet", ".arrow", *ALIASES)
BYTES_TO_GUESS = 4096
LONGEST = 128 * 2**20  # bytes or characters of a line, or of what has to be parsed at once

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which begins it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(cast(Any, pa.input_stream(str(path), compression="zstd"))))


COMPRESSIONS: dict[str, Callable[[Path, Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


@dataclass(frozen=True)
class TextFormat:
    """How text files are read where they do not say it themselves.

    Args:
        encoding: Of all text files; None is UTF-8, or what a byte order mark says.
        delimiter: Of CSV files, one character or its name; None is found from the file's first records.

    Raises:
        ConfigError: There is no such encoding, or the delimiter is not one character.
    """

    encoding: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            allowed = "null, utf-8, utf-16, cp1252, gb18030, …"
            raise ConfigError("data.encoding", self.encoding, found="no such encoding", allowed=allowed)
        if self.delimiter is not None:
            delimiter = DELIMITERS.get(str(self.delimiter), str(self.delimiter))
            if len(delimiter) != 1 or delimiter in '"\r\n':
                raise ConfigError("data.delimiter", self.delimiter, allowed=["null", *DELIMITERS, "one character"])
            object.__setattr__(self, "delimiter", delimiter)


def _is_text_encoding(name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(codecs.lookup(name)._is_text_encoding)
    except (LookupError, ValueError):
        return False


def file_format(path: Path) -> str | None:
    """Returns the suffix that says how to read `path`, without a compression's, or None where it is not one of ours."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        suffix = path.with_suffix("").suffix.lower()
        suffix = ALIASES.get(suffix, suffix)
        return suffix if suffix in TEXT_FORMATS else None
    return ALIASES.get(suffix, suffix) if suffix in SUFFIXES else None


def check_regular(path: Path) -> None:
    """Refuses what is there and is neither a file nor a folder: it may never end.

    Raises:
        InputError: It is a pipe, a device or a socket, or a link to one.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")
    raise InputError(path, found=f"not a regular file but {kind}", advice="write what it gives to a file first")


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file, decompressed."""
    opened: IO[bytes] = COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb")
    return opened


def open_text(path: Path, text_format: TextFormat) -> io.TextIOWrapper:
    """Opens a file decompressed and decoded, without its byte order mark, line ends as they are."""
    encoding = _encoding(path, text_format)
    return io.TextIOWrapper(open_binary(path), "utf-8-sig" if _is_utf8(encoding) else encoding, newline="\n")


def first_characters(path: Path, text_format: TextFormat) -> str:
    """Returns the beginning of a file, without a byte order mark; what cannot be decoded is replaced."""
    encoding = _encoding(path, text_format)
    with open_binary(path) as stream:
        return stream.read(BYTES_TO_GUESS).decode(encoding, errors="replace").removeprefix("\ufeff")


def decoded_lines(path: Path, text_format: TextFormat) -> Iterator[tuple[int, str]]:
    """Yields numbered lines with their ends, without a byte order mark.

    Raises:
        InputError: A line is too long, or cannot be decoded.
    """
    encoding = _encoding(path, text_format)
    name = encoding.upper()
    advice = "" if text_format.encoding else "set data.encoding"
    if "\n".encode(encoding) != b"\n":  # in UTF-16 a byte that looks like a line's end need not be one
        yield from _lines_of_text(path, text_format, name)
        return
    with open_binary(path) as stream:
        number = 1
        while line := stream.readline(LONGEST + 1):
            if len(line) > LONGEST:
                raise too_long(path, f"line {number}")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 and _is_utf8(encoding) else encoding)
            except UnicodeDecodeError as error:
                place = f"{error.reason} at byte {error.start}"
                raise InputError(f"{path}, line {number}", found=f"not {name} ({place})", advice=advice) from error
            number += 1


def _lines_of_text(path: Path, text_format: TextFormat, name: str) -> Iterator[tuple[int, str]]:
    number = 1
    with open_text(path, text_format) as stream:
        try:
            while line := stream.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    raise too_long(path, f"line {number}")
                yield number, line.removeprefix("\ufeff") if number == 1 else line
                number += 1
        except UnicodeError as error:
            raise InputError(f"{path}, line {number} or soon after", found=f"not {name} ({error})") from error


def too_long(path: Path, what: str, *, advice: str = "") -> InputError:
    """Returns the error about something that is too long to be read at once."""
    return InputError(f"{path}, {what}", found=f"longer than {LONGEST // 2**20} MB", advice=advice)


def _encoding(path: Path, text_format: TextFormat) -> str:
    """Returns the encoding that was asked for, or what a byte order mark says, or UTF-8.

    Raises:
        InputError: The file looks like UTF-16 and has no mark that says so.
    """
    if text_format.encoding is not None:
        return text_format.encoding
    with open_binary(path) as stream:
        start = stream.read(64)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    for order, zeros in (("be", start[0::2]), ("le", start[1::2])):
        if len(start) >= 4 and not any(zeros):
            found, advice = "looks like UTF-16 without a byte order mark", f"set data.encoding=utf-16-{order}"
            raise InputError(path, found=found, advice=advice)
    return "utf-8"


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"
