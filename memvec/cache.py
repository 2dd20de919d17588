"""The user's cache: what took time to fetch or to convert, kept for the next run.

In: `$MEMVEC_CACHE`, or the user's cache folder. Out: places in it, private where they hold texts; what nobody has used
for two weeks goes when something new comes.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from memvec.files import make_root

SECONDS_UNUSED = 14 * 24 * 3600


def cache_folder() -> Path:
    """Returns the cache's folder: `$MEMVEC_CACHE`, else `memvec` in the user's cache folder."""
    if own := os.environ.get("MEMVEC_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memvec"


def private_shelf(name: str) -> Path:
    """Returns a folder of the cache that is its owner's alone, made where there is none.

    Raises:
        OSError: It cannot be made.
    """
    shelf = cache_folder() / name
    make_root(shelf)
    return shelf


def mark_used(entry: Path) -> None:
    """Notes that a file or folder on a shelf was used now."""
    with suppress(OSError):  # gone, or another user's
        os.utime(entry)


def drop_unused(shelf: Path) -> None:
    """Removes what lies on a shelf and was not used for two weeks."""
    oldest = time.time() - SECONDS_UNUSED
    for entry in shelf.iterdir():
        with suppress(OSError):
            if entry.lstat().st_mtime < oldest:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
