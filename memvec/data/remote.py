"""Remote input files, fetched once: an address, or a glob or folder of them -> files on this machine.

In: `s3://bucket/memories/*.jsonl.gz`. Out: for each file its address, as messages show it, and its copy in the user's
cache, which is read as any other file: the run's fingerprint is of its content, and every check of an input applies.

How: the files are listed, and each is fetched that the cache does not have in this version (the server's checksum,
failing that its time, and the size; a file without any is fetched each time). Each appears whole or not at all, so that
a fetch that was cut off resumes with the next file. What was listed is noted when all are there: a run that resumes
needs the remote no more, whether it cannot be reached, has lost the files, or lets nobody in.
"""

from __future__ import annotations

import glob
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from memvec.cache import drop_unused, mark_used, private_shelf
from memvec.data.folders import (
    files_of_split,
    glob_root,
    is_data,
    is_passed_over,
    no_data,
    refuse_table_among,
    root_of_file,
    split_at_magic,
)
from memvec.data.formats.files import COMPRESSIONS, SUFFIXES, file_format
from memvec.data.runs import outside_runs
from memvec.digest import digest
from memvec.errors import InputError, RunFolderError, one_line
from memvec.fields import JsonObject
from memvec.files import make_folder, write_json
from memvec.remote import FileSystem, get_file, holds_manifest, in_threads, open_remote, remote_errors
from memvec.urls import WEB, masked

SHELF = "inputs"
OPTION = "data.path"
ANOTHER = "MEMVEC_CACHE names another folder"
# What servers say of a file's content, in the words of their packages; failing these, when it was written.
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "xet_hash", "blob_id", "checksum")
TIMES = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified")
COPY = re.compile(r"[0-9a-f]{32}/data[.\w]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file that was listed.

    Args:
        path: Its path in the file system.
        address: Its address, with all that is secret in it.
        version: What is another where its content is; None where the server says nothing of the kind.
        size: In bytes, or None where that is not known.
    """

    path: str
    address: str
    version: str | None
    size: int | None

    def copy_on(self, shelf: Path) -> Path:
        """Returns where its copy lies, under a name of its format."""
        name = Path(_plain(self.path))
        suffixes = (name.with_suffix("").suffix, name.suffix) if name.suffix.lower() in COMPRESSIONS else (name.suffix,)
        key = digest(f"{self.address}\0{self.version}\0{self.size}".encode("utf-8", "surrogateescape")).hex()
        return shelf / key / f"data{''.join(suffixes).lower()}"


def fetch(url: str, *, split: str | None = None, is_resumed: bool = False) -> list[tuple[str, Path]]:
    """Returns the files that an address names, on this machine.

    Args:
        url: The address of a file, of a folder, or a glob.
        split: The split to read; None reads all files.
        is_resumed: Whether a run is resumed that has read it before: then what was fetched for it is as good.

    Returns:
        For each file its address, as messages show it, and its copy, in the order of the paths.

    Raises:
        ConfigError: The address cannot be used.
        ExtraError: The package of its protocol is not installed.
        InputError: Nothing is there, or it cannot be read or kept here.
    """
    file_system, path = open_remote(url, option=OPTION)
    try:
        shelf = private_shelf(SHELF)
    except OSError as error:
        raise InputError(masked(url), found=f"no place to keep it: {one_line(error)}", advice=ANOTHER) from error
    note = shelf / f"{digest(f'{url}|{split}'.encode('utf-8', 'surrogateescape')).hex()}.json"
    try:
        files = _list_files(file_system, path, url, split)
        _fetch_missing(file_system, files, shelf, masked(url))
    except InputError as error:
        known = _read_note(note, shelf) if is_resumed else None
        if known is None:
            raise
        log.warning("%s; taking what this run has read from there before", error)
        return known
    found = [(masked(file.address), file.copy_on(shelf)) for file in files]
    write_json(note, {"files": [{"name": name, "copy": str(copy.relative_to(shelf))} for name, copy in found]})
    return found


def _read_note(note: Path, shelf: Path) -> list[tuple[str, Path]] | None:
    """Returns what an address has named when it was last fetched; None where that is not known or not all there."""
    try:
        files = [
            (file.take("name", str), file.take("copy", str)) for file in JsonObject.read(note).take_objects("files")
        ]
    except RunFolderError:
        return None
    if not all(COPY.fullmatch(copy) and (shelf / copy).is_file() for _, copy in files):
        return None
    for used in (note, *((shelf / copy).parent for _, copy in files)):
        mark_used(used)
    return [(name, shelf / copy) for name, copy in files]


def _list_files(file_system: FileSystem, path: str, url: str, split: str | None) -> list[RemoteFile]:
    """Returns the data files that an address names, without those of runs and of other splits."""
    name = masked(url)
    is_web = url.lower().startswith(WEB)
    with remote_errors(url, kind=InputError):
        infos, root, typed = _find(file_system, path, name, is_web=is_web)
        files = {Path(_plain(found)): found for found in sorted(infos)}
        visible = [file for file in files if not is_passed_over(file.relative_to(root).parts, typed=typed)]
        chosen = [file for file in visible if is_data(file)] or no_data(name, "found")
        if not is_web and path not in infos:
            folders = {
                root / folder for file in chosen for folder in file.relative_to(root).parents if folder != Path()
            }
            asked = sorted(folders)
            runs = dict(zip(asked, in_threads(partial(holds_manifest, file_system), asked), strict=True))
            chosen = outside_runs(chosen, root=root, name=name, is_run=runs.__getitem__)
        if split is not None:
            chosen = files_of_split(chosen, split, root=root, name=name)
        paths = [files[file] for file in chosen]
        return in_threads(lambda one: _remote_file(file_system, one, infos[one]), paths)


def _find(
    file_system: FileSystem, path: str, name: str, *, is_web: bool
) -> tuple[dict[str, dict[str, Any]], Path, Sequence[str]]:
    """Returns what there is by its path, the folder below which names count, and the parts of a pattern."""
    try:
        info = file_system.info(path)
    except FileNotFoundError:
        if not glob.has_magic(path.partition("?")[0] if is_web else path):
            raise
        found = {}
        for one, info in file_system.glob(path, detail=True).items():
            if info["type"] != "directory":
                found[one] = info
            elif file_format(Path(one)) is not None:  # Spark writes folders that are called like files
                found |= file_system.find(one, detail=True)
        if not found:
            no_data(name, "the glob matches")
        refuse_table_among((Path(one) for one in found), name=name)
        return found, glob_root(path), split_at_magic(path)[1:]
    if info["type"] != "directory":
        file = Path(_plain(path))
        if file_format(file) is None:
            raise InputError(name, found=f"unknown format {file.suffix or '(no suffix)'!r}", allowed=SUFFIXES)
        return {path: info}, root_of_file(file), (file.name,)
    found = file_system.find(path, detail=True)
    refuse_table_among((Path(one) for one in found), name=name)
    return _of_dataset(found, path) or no_data(name, "the folder holds"), Path(path), ()


def _of_dataset(found: dict[str, dict[str, Any]], root: str) -> dict[str, dict[str, Any]]:
    """Leaves out what lies beside the data of a dataset that is laid out as on the Hub, with a card."""
    within = {one: info for one, info in found.items() if one.startswith(f"{root}/data/") and is_data(Path(one))}
    return within if within and f"{root}/README.md" in found else found


def _remote_file(file_system: FileSystem, path: str, info: dict[str, Any]) -> RemoteFile:
    version = _version(info)
    if version is None:  # a listing may say less
        info = file_system.info(path)
        version = _version(info)
    return RemoteFile(path, str(file_system.unstrip_protocol(path)), version, info.get("size"))


def _version(info: dict[str, Any]) -> str | None:
    found = next((info[name] for name in (*CHECKSUMS, *TIMES) if info.get(name)), None)
    return None if found is None else str(found)


def _plain(path: str) -> str:
    """Returns a path without what only a web address has: a query, and names that are escaped."""
    return unquote(path.partition("?")[0]) if path.lower().startswith(WEB) else path


def _fetch_missing(file_system: FileSystem, files: Sequence[RemoteFile], shelf: Path, name: str) -> None:
    """Fetches the files that are not on the shelf in this version."""
    missing = [file for file in files if file.version is None or not file.copy_on(shelf).is_file()]
    for file in files:
        mark_used(file.copy_on(shelf).parent)
    if not missing:
        return
    drop_unused(shelf)
    size, free = sum(file.size or 0 for file in missing), shutil.disk_usage(shelf).free
    if size > free:
        found = f"{size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free in {shelf}"
        raise InputError(name, found=found, advice=ANOTHER)
    log.info("fetching %s: %d of %d files, %.1f MiB", name, len(missing), len(files), size / 2**20)

    def fetch_one(file: RemoteFile) -> None:
        copy = file.copy_on(shelf)
        make_folder(copy.parent)
        get_file(file_system, file.path, copy, url=file.address, kind=InputError)

    in_threads(fetch_one, missing)
