"""Remote files as fsspec reaches them: `s3:// gs:// hf:// https://` and whatever else it has a package for.

In: an address. Out: fsspec's file system and the path in it; and errors of a dozen libraries as one line each.

Where the server is and who asks comes from where fsspec and its packages look for it (environment, configuration
files), and so do timeouts and retries: nothing of that is an option of memvec. Only downloads from the web may take
longer than the five minutes that aiohttp gives a whole response: what counts is that something comes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback

from memvec.errors import ConfigError, ExtraError, MemvecError, one_line
from memvec.extras import import_extra
from memvec.files import MOST_BYTES, atomic_file
from memvec.layout import MANIFEST, is_manifest
from memvec.urls import QUERY, WEB, has_secret_user, masked

# The package and the extra of protocols whose package memvec knows; fsspec names the others' itself.
EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gs")),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), ("adlfs", "azure")),
}
LOCAL = ("file", "local")
SECONDS_OF_SILENCE = 60
SHARE_OF_DISK = 0.95

AT_A_TIME = 8

FileSystem = Any  # fsspec's, which ships no type information
Item = TypeVar("Item")
Result = TypeVar("Result")


def local_path(name: str) -> str:
    """Returns the path that `file://` stands before; any other name as it is."""
    protocol, separator, _ = name.partition("://")
    if separator and protocol.lower() in LOCAL:
        path: str = fsspec.get_filesystem_class("file")._strip_protocol(name)
        return path
    return name


def open_remote(url: str, *, option: str) -> tuple[FileSystem, str]:
    """Returns the file system of an address, and the path in it; nothing is asked of a server yet.

    Args:
        url: The address.
        option: Which option named it, for messages.

    Raises:
        ConfigError: There is no such protocol, or the address holds a password, or is several in one (`::`).
        ExtraError: The protocol's package is not installed.
    """
    protocol = url.partition("://")[0].lower()
    if "::" in url:
        raise ConfigError(option, url, allowed="one address, without ::")
    if has_secret_user(url):
        found = f"name and password do not belong in an address of {protocol}://"
        advice = "set them where its package looks for them, such as in the environment"
        raise ConfigError(option, url, found=found, advice=advice)
    if protocol in EXTRAS:
        package, extra = EXTRAS[protocol]
        import_extra(package, extra=extra, purpose=f"{protocol}://")
    try:
        # Not one that an earlier call has made: it would keep the listings and credentials of then.
        file_system, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **_patience(protocol))
    except ImportError as error:
        raise ExtraError(option, url, found=one_line(error)) from error
    except Exception as error:  # what a package's constructor does not like, in errors of its own
        raise ConfigError(option, url, found=f"cannot be used: {one_line(error)}") from error
    return file_system, str(path)


def _patience(protocol: str) -> dict[str, Any]:
    """Returns the time limits of the web's client, unless fsspec's configuration sets some."""
    configured = {**fsspec.config.conf.get("http", {}), **fsspec.config.conf.get("https", {})}
    if f"{protocol}://" not in WEB or "client_kwargs" in configured:
        return {}
    from aiohttp import ClientTimeout  # needed for these protocols alone

    limits = ClientTimeout(total=None, sock_connect=SECONDS_OF_SILENCE, sock_read=SECONDS_OF_SILENCE)
    return {"client_kwargs": {"timeout": limits}}


def get_file(file_system: FileSystem, path: str, local: Path, *, url: str, kind: type[MemvecError]) -> None:
    """Downloads a file, which appears whole or not at all; what never ends stops before the disk is full.

    Args:
        file_system: Where it lies.
        path: Its path there.
        local: Where it goes.
        url: Its address, for messages.
        kind: What to raise.

    Raises:
        MemvecError: It cannot be read, as `kind`.
        WriterError: It cannot be written.
    """
    room = int(shutil.disk_usage(local.parent).free * SHARE_OF_DISK)
    # The Hub's client says sizes, and has a quicker way for whoever does not count along.
    counting = {} if url.startswith("hf://") else {"callback": _Bounded(room, local.parent)}
    with atomic_file(local) as partial, remote_errors(url, kind=kind):
        file_system.get_file(path, str(partial), **counting)


def holds_manifest(file_system: FileSystem, folder: Path) -> bool:
    """Whether a finished run of memvec lies in a remote folder."""
    try:
        return is_manifest(json.loads(file_system.cat_file(f"{folder}/{MANIFEST}", end=MOST_BYTES)))
    except (FileNotFoundError, ValueError, RecursionError):
        return False


class _Bounded(Callback):  # type: ignore[misc]
    """Ends a download that is larger than what there is room for."""

    def __init__(self, most: int, folder: Path) -> None:
        super().__init__()
        self.most = most
        self.folder = folder

    def relative_update(self, inc: int = 1) -> None:
        """Counts bytes."""
        super().relative_update(inc)
        if self.value > self.most:
            raise OSError(f"larger than the {self.most / 2**30:,.1f} GiB that are free in {self.folder}")


@contextmanager
def remote_errors(url: str, *, kind: type[MemvecError], cannot: str = "be read") -> Iterator[None]:
    """Turns whatever a protocol's library raises into one line that names the address.

    Args:
        url: The address.
        kind: What to raise.
        cannot: What could not be done.
    """
    try:
        yield
    except MemvecError:
        raise
    except Exception as error:  # of a dozen libraries, most with types of their own
        raise kind(masked(url), found=f"cannot {cannot}: {_said(error, url)}") from error


def _said(error: Exception, url: str) -> str:
    """Returns what a library's error says, in words where it says only a name or a code."""
    cause = error.__cause__
    answer = getattr(cause, "response", None)
    if isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "NoSuchBucket":
        return "there is no such bucket"
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and not isinstance(answer, dict):
        error = cause  # fsspec says so of any web address that does not answer
    said = getattr(error, "server_message", None) or one_line(error)  # the Hub's errors begin with the code alone
    if query := QUERY.search(url):
        said = said.replace(query[0], "?…")
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is denied ({said})"
    if isinstance(error, FileNotFoundError) or status == 404:
        return "there is no such file or folder"
    return said


def in_threads(do: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Does something with each item, some at a time; after the first error with no more."""
    with ThreadPoolExecutor(min(AT_A_TIME, max(1, len(items)))) as pool:
        try:
            return list(pool.map(do, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
