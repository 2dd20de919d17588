"""Files that appear whole or not at all.

In: a path. Out: a temporary path beside it to write to, which takes the path's name once it is complete and on disk.
A process killed at any instruction leaves either the old file, the new file, or a `.partial` that nobody reads. What
cannot be written (a full disk, a folder that is closed) is an error of one line that names the path, from here alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memvec.errors import WriterError, one_line


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
        raise WriterError(f"{path}: cannot be written: {one_line(error)}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; on leaving without an error it is synced to disk and renamed to `path`.

    The order (write, fsync the file, rename, fsync the folder) is what makes the rename survive a power loss:
    https://lwn.net/Articles/457667/.

    Raises:
        WriterError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            yield partial
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
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file that memvec wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
