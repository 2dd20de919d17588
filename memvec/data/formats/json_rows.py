"""JSON: an object a line, an array of objects, or an object that wraps one such array.

In: a `.jsonl .ndjson .json` file; what it holds, and not its name, says which of the three it is, but that a line of
JSON lines is a row, whatever arrays are in it. Out: its objects.

How: lines are parsed one by one, an array item by item, so that memory does not grow with the file; an object over
several lines is read whole, up to a bound.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memvec.data.formats.fields import MISSING, NAMES_SHOWN, Record, Wanted, field_of, missing_column
from memvec.data.formats.files import (
    LONGEST,
    TextFormat,
    decoded_lines,
    file_format,
    first_characters,
    open_text,
    too_long,
)
from memvec.errors import InputError, one_line

CHARACTERS_PER_READ = 2**20
OPEN_ENDS = ("{", "[", ",", ":")  # what a line of JSON that goes on in the next one ends with
LONGEST_TOKEN = 16  # characters of what can be cut in two and is no string: \uXXXX, true, false, null
WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path, wanted: Wanted, text_format: TextFormat) -> Iterator[Record]:
    """Yields the objects of a file: by their line from 1, or in an array by their position from 0.

    Raises:
        InputError: Something is no JSON, or no object, or no object has the text.
    """
    yield from object_records(_objects(path, wanted, text_format), str(path), wanted)


def object_records(objects: Iterable[tuple[int, Any]], source: str, wanted: Wanted) -> Iterator[Record]:
    """Yields the wanted fields of objects.

    Args:
        objects: Each with its row's number.
        source: What messages call them.
        wanted: The fields.

    Raises:
        InputError: Something is no object, or no object has the text.
    """
    seen: dict[str, None] = {}
    found_text = False
    for number, record in objects:
        if not isinstance(record, Mapping):
            allowed = f'an object such as {{"{wanted.text}": …}}'
            raise InputError(f"{source}, row {number}", found=f"found {type(record).__name__}", allowed=allowed)
        text = field_of(record, wanted.text)
        found_text = found_text or text is not MISSING
        if not found_text and len(seen) < NAMES_SHOWN:
            seen.update(dict.fromkeys(record))
        yield number, field_of(record, wanted.id), text, *(field_of(record, name) for name in wanted.more)
    if not found_text:
        raise missing_column(source, wanted.text, sorted(map(str, seen)))


def read_first_names(path: Path, text_column: str, text_format: TextFormat) -> list[str]:
    """Returns the names of the fields of a file's first row."""
    _, first = next(_objects(path, Wanted(text_column), text_format), (0, None))
    return list(first) if isinstance(first, dict) else []


def _objects(path: Path, wanted: Wanted, text_format: TextFormat) -> Iterator[tuple[int, Any]]:
    if first_characters(path, text_format).lstrip().startswith("["):
        with open_text(path, text_format) as stream:
            yield from enumerate(_Array(path, stream))
        return
    lines = ((number, line) for number, line in decoded_lines(path, text_format) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    number, line = first
    if line.rstrip().endswith(OPEN_ENDS):
        with open_text(path, text_format) as stream:
            content = stream.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise too_long(path, "one object over several lines", advice="write the rows as JSON lines")
        yield from _rows_within(path, number, _parse(content, path), wanted)
        return
    record = _parse(line, path, first_line=number)
    second = next(lines, None)
    if second is None:
        yield from _rows_within(path, number, record, wanted)
        return
    yield number, record
    yield second[0], _parse(second[1], path, first_line=second[0])
    for number, line in lines:
        yield number, _parse(line, path, first_line=number)


def _rows_within(path: Path, number: int, record: Any, wanted: Wanted) -> Iterator[tuple[int, Any]]:
    """Yields a file's only object, or of `.json` the objects of the one list in it where it is no row itself."""
    lists = []
    if file_format(path) == ".json" and isinstance(record, dict) and field_of(record, wanted.text) is MISSING:
        lists = [name for name, value in record.items() if _is_list_of_objects(value)]
    if len(lists) > 1:
        found = f"an object with several lists of objects: {', '.join(lists[:NAMES_SHOWN])}"
        raise InputError(path, found=found, allowed="one, or the rows alone")
    if not lists:
        yield number, record
        return
    yield from enumerate(record[lists[0]])


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)


def _parse(content: str, path: Path, *, first_line: int = 1) -> Any:
    content = content.rstrip()  # what breaks off does so at its end, not on the line behind it
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise _not_json(path, first_line + error.lineno - 1, error.msg, error.colno) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; a nesting of thousands
        raise _unreadable(path, first_line, error) from error


def _not_json(path: Path, line: int, message: str, column: int) -> InputError:
    return InputError(f"{path}, line {line}", found=f"not JSON ({message} at column {column})")


def _unreadable(path: Path, line: int, error: Exception) -> InputError:
    return InputError(f"{path}, line {line}", found=f"JSON that cannot be read ({one_line(error)})")


class _Array:
    """The items of an array, decoded from a window that moves over the file.

    Args:
        path: The file, for messages.
        stream: Its characters from the beginning.
    """

    def __init__(self, path: Path, stream: io.TextIOWrapper) -> None:
        self.path = path
        self.stream = stream
        self.decoder = json.JSONDecoder()
        self.window = ""
        self.at = 0  # where in the window the next item or sign begins
        self.is_last = False  # whether the window holds the rest of the file
        self.line, self.column = 1, 1  # of the window's first character

    def __iter__(self) -> Iterator[Any]:
        self._next_sign()
        self.at += 1
        if self._next_sign() == "]":
            self.at += 1
        else:
            yield self._item()
            while (sign := self._next_sign()) == ",":
                self.at += 1
                self._next_sign()
                yield self._item()
            if sign != "]":
                raise self._error("Expecting ',' delimiter", self.at)
            self.at += 1
        if self._next_sign():
            raise self._error("Extra data", self.at)

    def _item(self) -> Any:
        while True:
            try:
                item, end = self.decoder.raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self.window) - LONGEST_TOKEN
                if self.is_last or not is_cut:
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise _unreadable(self.path, self._place(self.at)[0], error) from error
            else:
                if end < len(self.window) or self.is_last:  # the digits of a number may go on behind the window
                    self.at = end
                    return item
            self._read_on()

    def _next_sign(self) -> str:
        """Passes over white space; returns the character behind it, or nothing at the file's end."""
        while True:
            behind = WHITE_SPACE.match(self.window, self.at)
            end = behind.end() if behind else self.at
            if end < len(self.window):
                self.at = end
                return self.window[end]
            if self.is_last:
                return ""
            self._read_on()

    def _read_on(self) -> None:
        """Drops what is done from the window and doubles the rest."""
        self.line, self.column = self._place(self.at)
        self.window, self.at = self.window[self.at :], 0
        if len(self.window) > LONGEST:
            raise too_long(self.path, f"line {self.line}, an item")
        read = self.stream.read(max(CHARACTERS_PER_READ, len(self.window)))
        self.window += read
        if not read:
            self.is_last = True
            self.window = self.window.rstrip()

    def _place(self, at: int) -> tuple[int, int]:
        """Returns line and column in the file of a position in the window."""
        lines = self.window.count("\n", 0, at)
        if not lines:
            return self.line, self.column + at
        return self.line + lines, at - self.window.rfind("\n", 0, at)

    def _error(self, message: str, at: int) -> InputError:
        line, column = self._place(at)
        return _not_json(self.path, line, message, column)
