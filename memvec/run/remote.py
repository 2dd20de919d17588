"""A finished run at an address, mirrored once, so that it is read as one that lies here.

In: `s3://bucket/runs/a`, or the path of a folder. Out: the folder of a run, complete and verified.

How: the manifest is read first. It says which Parquet files the run has, and of a run that `publish=` has copied also
their checksums. They go to the user's cache, into a folder that bears the run's name within one that is named by the
address and the manifest's content; the manifest last. So a mirror is whole or is resumed, another run at the same
address is another mirror, and one that is there costs one request. The manifest and its names may be anybody's, and
lead nowhere else.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from pathlib import Path

from memvec.cache import drop_unused, mark_used, private_shelf
from memvec.digest import digest
from memvec.errors import RunFolderError, one_line
from memvec.fields import JsonObject
from memvec.files import MOST_BYTES, atomic_file, make_folder
from memvec.layout import MANIFEST, RunLayout, is_manifest
from memvec.remote import FileSystem, get_file, in_threads, local_path, open_remote, remote_errors
from memvec.urls import is_url, masked

SHELF = "runs"
# In a published run's manifest: bytes and SHA-256 of its files, by their names.
FILES = "files"
NAME = re.compile(r"\w[\w.@-]{0,99}")
PART = re.compile(r"(vectors/)?[\w-][\w.-]*\.parquet")
# What a run leaves beside its results, and whose absence does not keep it from being read.
BESIDE = ("metrics.json", "history.json")

log = logging.getLogger(__name__)


def local_run(output_dir: str | Path) -> Path:
    """Returns the folder of a run on this machine: as it is named, or the mirror of one at an address.

    Args:
        output_dir: A folder, or an address.

    Raises:
        ConfigError: The address cannot be used.
        ExtraError: The package of its protocol is not installed.
        RunFolderError: No finished run is there, or it cannot be read, or a file is not what its manifest says.
    """
    named = local_path(output_dir) if isinstance(output_dir, str) else output_dir
    if not isinstance(named, str) or not is_url(named):
        return Path(named)
    url = named.rstrip("/")
    file_system, root = open_remote(url, option="output_dir")
    content = read_manifest_at(file_system, root, url)
    if content is None:
        with remote_errors(url, kind=RunFolderError):
            file_system.info(root)
        raise RunFolderError(masked(url), found="holds no finished run")
    try:
        shelf = private_shelf(SHELF)
        entry = shelf / digest(b"\0".join([url.encode("utf-8", "surrogateescape"), content])).hex()
        name = url.rpartition("/")[2]
        folder = RunLayout(entry / (name if NAME.fullmatch(name) else "run"))
        if not folder.manifest.is_file():
            drop_unused(shelf)
            make_folder(entry)
            make_folder(folder.root)
            _mirror(file_system, root.rstrip("/"), url, content, folder)
        mark_used(entry)
    except OSError as error:
        raise RunFolderError(masked(url), found=f"there is no place to keep it: {one_line(error)}") from error
    return folder.root


def read_manifest_at(file_system: FileSystem, root: str, url: str) -> bytes | None:
    """Returns the manifest of a remote run, not understood yet; None where there is none.

    Raises:
        RunFolderError: It cannot be read.
    """
    with remote_errors(url, kind=RunFolderError):
        try:
            content: bytes = file_system.cat_file(f"{root}/{MANIFEST}", end=MOST_BYTES + 1)
        except FileNotFoundError:
            return None
    if len(content) > MOST_BYTES:
        raise RunFolderError(masked(url), found=f"its {MANIFEST} is larger than {MOST_BYTES // 2**20} MiB")
    return content


def _mirror(file_system: FileSystem, root: str, url: str, content: bytes, folder: RunLayout) -> None:
    """Fetches the files of a run that are not here yet, then writes its manifest."""
    name = masked(url)
    fetched = folder.root / "fetched.json"
    with atomic_file(fetched) as partial:
        partial.write_bytes(content)
    try:
        manifest = JsonObject.read(fetched)
        if not is_manifest(manifest.content):
            raise RunFolderError(name, found=f"its {MANIFEST} is not one of memvec")
        parts = list(manifest.within("parts").take_all(int))
        checksums = _checksums(manifest)
    except RunFolderError as error:
        error.subject = error.subject.replace(str(fetched), f"{name}/{MANIFEST}")
        raise
    for part in parts:
        if not PART.fullmatch(part):
            raise RunFolderError.damaged(f"{name}/{MANIFEST}", f"{part!r} is no file of a run")
    make_folder(folder.vectors)
    missing = [part for part in parts if not (folder.root / part).is_file()]
    log.info("fetching %s: %d of %d files", name, len(missing), len(parts))

    def fetch_part(part: str) -> None:
        local = folder.root / part
        get_file(file_system, f"{root}/{part}", local, url=f"{url}/{part}", kind=RunFolderError)
        if part in checksums and sha256_of(local) != checksums[part]:
            local.unlink()
            raise RunFolderError(f"{name}/{part}", found="damaged: its checksum is not the one in its manifest")

    in_threads(fetch_part, missing)
    for beside in BESIDE:
        with suppress(RunFolderError):
            get_file(file_system, f"{root}/{beside}", folder.root / beside, url=f"{url}/{beside}", kind=RunFolderError)
    with atomic_file(folder.manifest) as partial:
        partial.write_bytes(content)
    fetched.unlink(missing_ok=True)


def _checksums(manifest: JsonObject) -> dict[str, str]:
    if not manifest.has(FILES):
        return {}
    files = manifest.within(FILES)
    return {name: files.as_object(found, name).take("sha256", str) for name, found in files.content.items()}


def sha256_of(path: Path) -> str:
    """Returns the hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
