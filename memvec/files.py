"""Files that appear whole or not at all, as private as the folder they lie in; and JSON files that are read warily.

In: a path. Out: a temporary path beside it to write to, which takes the path's name once it is complete and on disk.
A process killed at any instruction leaves either the old file, the new file, or a `.partial` that nobody reads. What
cannot be written (a full disk, a folder that is closed) is an error of one line that names the path, from here alone.

How files stay private: what memvec puts into a folder can be read by whoever may read the folder, and a run's folder
that it makes itself is its owner's alone. A user who has made the folder beforehand has chosen its mode.
No link at a path that memvec writes is followed: it may have been planted to have another file overwritten.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from memvec.errors import RunFolderError, WriterError, one_line

# Of a JSON file that is read back: far more than any run writes, and what still fits into memory when parsed.
MOST_BYTES = 32 * 2**20
DEEPEST = 64


def make_root(path: Path) -> None:
    """Makes a folder that is its owner's alone, and those above it that are missing; one that is there is left.

    Raises:
        OSError: It cannot be made.
    """
    if not path.is_dir():
        make_root(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder as private as the one it lies in, where there is none.

    Raises:
        RunFolderError: A link is in its place.
        WriterError: It cannot be made.
    """
    _refuse_link(path)
    with writing(path):
        path.mkdir(mode=path.parent.stat().st_mode & 0o777, exist_ok=True)


def create_file(path: Path, flags: int) -> int:
    """Opens a file to write to, made as private as the folder it lies in where there is none.

    Args:
        path: The file.
        flags: Of `os.open`, besides those to write and to make it.

    Returns:
        Its descriptor.

    Raises:
        RunFolderError: A link is in its place.
        OSError: It cannot be made.
    """
    _refuse_link(path)
    mode = path.parent.stat().st_mode & 0o666
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, mode)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        found = f"a link to {path.readlink()}, which memvec does not follow"
        raise RunFolderError(path, found=found, advice="remove it")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of the file system into one line that names what could not be written.

    Args:
        path: The file or folder; an operating system's error of writing does not name it.

    Raises:
        WriterError: The disk is full or fails, or the folder may not be written to.
    """
    try:
        yield
    except OSError as error:
        raise WriterError(path, found=f"cannot be written: {one_line(error)}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path, an empty file; on leaving without an error it is synced to disk and renamed to `path`.

    The order (write, fsync the file, rename, fsync the folder) is what makes the rename survive a power loss:
    https://lwn.net/Articles/457667/.

    Raises:
        WriterError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.partial")
    try:
        with writing(path):
            partial.unlink(missing_ok=True)  # of a killed process that had the same numbers
            os.close(create_file(partial, os.O_EXCL))
            mode = stat.S_IMODE(partial.stat().st_mode)
            yield partial
            partial.chmod(mode)  # whoever wrote it may have made it anew
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # the folder itself may be what is gone or closed
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    with atomic_file(path) as partial:
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        # A path need not be Unicode; a lone surrogate becomes what JSON escapes it as.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Reads a JSON file, which need not be one that memvec wrote.

    Raises:
        RunFolderError: It is not there, or not a file, or it holds no JSON, or more or deeper than memvec ever writes.
    """
    with _reading(path) as stream:
        content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES // 2**20} MiB")
        return _parse(content)


def read_json_lines(path: Path, *, most: int) -> list[Any]:
    """Reads the first lines of a file that holds JSON on each.

    Args:
        path: The file.
        most: How many lines.

    Raises:
        RunFolderError: As `read_json`.
    """
    with _reading(path) as stream:
        lines = [stream.readline(MOST_BYTES) for _ in range(most)]
        return [_parse(line) for line in lines if line]


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that may be anybody's; whatever is wrong with it is one line that names it."""
    try:
        # Without blocking, since a named pipe would never answer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError("not a regular file")
            yield stream
    except OSError as error:
        raise RunFolderError(path, found=f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError.damaged(path, one_line(error)) from error


def _parse(content: bytes) -> Any:
    value = json.loads(content.decode("utf-8"))
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _values(outer)]
        if not level:
            return value
    raise ValueError(f"nested more than {DEEPEST} deep")


def _values(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer
