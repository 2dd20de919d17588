"""Where a finished run can be copied to: a folder here, or a folder at an address.

In: `publish=`. Out: the few things that copying asks of a place: which files are there, what one holds, put one there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from memvec.errors import RunFolderError, one_line
from memvec.files import atomic_file, make_folder, make_root, writing
from memvec.remote import FileSystem, remote_errors
from memvec.urls import masked

CANNOT = "be published to"
# A file there needs no folder; and to make one would make the bucket, which whoever mistyped its name does not want.
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"})
OBJECT_STORES = BUCKETS | {"hf"}


class Place(Protocol):
    """A folder, wherever it is; names in it have slashes."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file there is, by its name."""

    def read(self, name: str) -> bytes | None:
        """Returns what a small file holds; None where there is none."""

    def put(self, name: str, path: Path) -> None:
        """Copies a file there, in the place of what has its name."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, in the place of what has its name."""

    def remove(self, name: str) -> None:
        """Removes a file."""


class FolderHere:
    """A folder of this machine; its owner's alone where it is made.

    Args:
        root: The folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.root)

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file there is, by its name.

        Raises:
            RunFolderError: It cannot be read, or is no folder.
        """
        found = {}
        try:
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError("it is no folder")
            for folder, _, names in os.walk(self.root, onerror=_raise):
                for name in names:
                    path = Path(folder, name)
                    if not name.endswith(".partial"):  # of a process that was killed
                        found[path.relative_to(self.root).as_posix()] = path.lstat().st_size
        except OSError as error:
            raise RunFolderError(self.name, found=f"cannot {CANNOT}: {one_line(error)}") from error
        return found

    def read(self, name: str) -> bytes | None:
        """Returns what a small file holds; None where there is none."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFolderError(self.name, found=f"cannot be read: {one_line(error)}") from error

    def put(self, name: str, path: Path) -> None:
        """Copies a file, which appears whole or not at all.

        Raises:
            WriterError: It cannot be written.
        """
        with atomic_file(self._made(name)) as partial:
            shutil.copyfile(path, partial)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, which appears whole or not at all.

        Raises:
            WriterError: It cannot be written.
        """
        with atomic_file(self._made(name)) as partial:
            partial.write_bytes(content)

    def remove(self, name: str) -> None:
        """Removes a file."""
        (self.root / name).unlink(missing_ok=True)

    def _made(self, name: str) -> Path:
        path = self.root / name
        with writing(path):
            make_root(self.root)
        if path.parent != self.root:
            make_folder(path.parent)
        return path


class FolderThere:
    """A folder at an address.

    Args:
        file_system: fsspec's.
        root: The folder's path in it.
        url: Its address.
    """

    def __init__(self, file_system: FileSystem, root: str, url: str) -> None:
        self.file_system = file_system
        self.root = root.rstrip("/")
        self.url = url

    @property
    def name(self) -> str:
        """The address, without what is secret in it."""
        return masked(self.url)

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file there is, by its name.

        Raises:
            RunFolderError: It cannot be asked.
        """
        self.file_system.invalidate_cache()
        with remote_errors(self.url, kind=RunFolderError, cannot=CANNOT):
            try:
                found = self.file_system.find(self.root, detail=True)
            except FileNotFoundError:  # nothing yet; but the bucket has to be there
                bucket = self.root.partition("/")[0]
                if self._protocol in BUCKETS and not self.file_system.exists(bucket):
                    raise RunFolderError(self.name, found=f"cannot {CANNOT}: there is no such bucket") from None
                return {}
        names = {path.removeprefix(f"{self.root}/"): info for path, info in found.items()}
        return {name: int(info["size"] or 0) for name, info in names.items() if name and not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Returns what a small file holds; None where there is none.

        Raises:
            RunFolderError: It cannot be asked.
        """
        with remote_errors(self.url, kind=RunFolderError):
            try:
                content: bytes = self.file_system.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def put(self, name: str, path: Path) -> None:
        """Copies a file there.

        Raises:
            RunFolderError: It cannot be written.
        """
        with remote_errors(self.url, kind=RunFolderError, cannot=CANNOT):
            self._make_folder_of(name)
            self.file_system.put_file(str(path), f"{self.root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file there.

        Raises:
            RunFolderError: It cannot be written.
        """
        with remote_errors(self.url, kind=RunFolderError, cannot=CANNOT):
            self._make_folder_of(name)
            self.file_system.pipe_file(f"{self.root}/{name}", content)

    def remove(self, name: str) -> None:
        """Removes a file.

        Raises:
            RunFolderError: It cannot be removed.
        """
        with remote_errors(self.url, kind=RunFolderError, cannot="be cleaned up"):
            self.file_system.rm_file(f"{self.root}/{name}")

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0].lower()

    def _make_folder_of(self, name: str) -> None:
        if self._protocol not in OBJECT_STORES:
            self.file_system.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
