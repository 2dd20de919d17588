"""The claim on a run's folder: whose it is, and whether a run may go on in it (`memvec.layout`: what lies where).

A run is identified by its fingerprint: everything that decides which vectors come out. A folder whose fingerprint
differs, or that holds other things, is never written to.
"""

from __future__ import annotations

import logging
import re
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import filelock

from memvec.errors import RunFolderError, one_line
from memvec.files import make_folder, make_root, read_json, write_json
from memvec.layout import MEMORIES, RunLayout

log = logging.getLogger(__name__)

# What Hydra or a shell may have put there before the first run of memvec.
HARMLESS = frozenset({".hydra", "logs", ".DS_Store"})
# How the fingerprint names the content of files.
DIGEST = re.compile(r"[0-9a-f]{64}")


class RunState(Enum):
    """What `RunFolder.claim` found."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def _change(name: str, was: Any, now: Any) -> str:
    """Returns in words how a part of the fingerprint differs; of digests it is enough that they do."""
    values = [value for found in (was, now) for value in (found if isinstance(found, list) else [found])]
    if all(isinstance(value, str) and DIGEST.fullmatch(value) for value in values):
        return f"{name} has other content than it had"
    return f"{name} was {was!r}, is {now!r}"


class RunFolder(RunLayout):
    """Paths of a run, and the claim on them.

    Args:
        root: The run's folder; it need not exist.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._lock: filelock.BaseFileLock | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return self._read_manifest() is not None

    def check_finished(self) -> None:
        """Refuses a folder whose vectors cannot be read yet.

        Raises:
            RunFolderError: It holds an unfinished run, or none.
        """
        if not self.is_finished:
            state = "an unfinished run; run the same command again to go on" if self.journal.is_dir() else "no run"
            raise RunFolderError(f"{self.root}: holds {state}")

    def check_stage_before(self) -> None:
        """Refuses, before the stage before starts, a folder that would be refused once that is complete.

        Raises:
            RunFolderError: A run lies there that had no such stage, or other files do.
        """
        if RunFolder(self.root / MEMORIES).is_finished:
            return  # the claim follows at once
        if self.is_finished or self.fingerprint.is_file():
            raise RunFolderError(
                f"{self.root}: holds a run of something else, without {MEMORIES}/; name another output_dir"
            )
        self._refuse_other_files({MEMORIES})

    def claim(self, fingerprint: dict[str, Any], *, resume: bool = True) -> RunState:
        """Takes the folder for a run, or says why it cannot be had. To be called by one process of a run.

        Args:
            fingerprint: What decides the vectors; compared with that of the run found there.
            resume: Whether a run found there may be gone on with; if not, the folder must be empty.

        Returns:
            Whether there is nothing yet, an unfinished run, or a finished one.

        Raises:
            RunFolderError: Another process works there, another run or other files lie there, or it cannot be written.
        """
        try:
            state = self._state()
            if state is not RunState.NEW and not resume:
                raise RunFolderError(
                    f"{self.root}: holds {'a finished' if self.is_finished else 'an unfinished'} run and resume=false "
                    "was given; name another output_dir or remove the folder"
                )
            if state is not RunState.NEW:
                self._refuse_other_fingerprint(fingerprint)
            if state is not RunState.FINISHED:
                self._take_lock()
                self._remove_partial_files()
            if state is RunState.NEW:
                write_json(self.fingerprint, fingerprint)
            return state
        except OSError as error:
            raise RunFolderError(f"{self.root}: the run's folder cannot be used: {one_line(error)}") from error

    def release(self, *, remove_journal: bool = False) -> None:
        """Gives the folder back; with `remove_journal`, what only an unfinished run needs goes."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if remove_journal:
            shutil.rmtree(self.journal, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned rank gets the paths, not the claim."""
        return {**self.__dict__, "_lock": None}

    def _state(self) -> RunState:
        if self.is_finished:
            return RunState.FINISHED
        if self.fingerprint.is_file():
            return RunState.UNFINISHED
        self._refuse_other_files({MEMORIES} if RunFolder(self.root / MEMORIES).is_finished else set())
        return RunState.NEW

    def _refuse_other_files(self, before: set[str]) -> None:
        found = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        others = [name for name in found if name not in HARMLESS | before | {self.journal.name}]
        if others or (self.journal.exists() and not self._journal_is_bare()):
            shown = ", ".join(others[:5]) or self.journal.name
            raise RunFolderError(f"{self.root}: holds other files ({shown}); name an empty or new output_dir")

    def _read_manifest(self) -> dict[str, Any] | None:
        """Returns the manifest, or None where there is none of memvec's."""
        try:
            content = read_json(self.manifest)
        except RunFolderError:
            return None
        return content if isinstance(content, dict) and isinstance(content.get("fingerprint"), dict) else None

    def _journal_is_bare(self) -> bool:
        """Whether a run was killed between making its journal folder and signing it."""
        return all(path.name == "lock" or path.name.endswith(".partial") for path in self.journal.iterdir())

    def _refuse_other_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        manifest = self._read_manifest()
        found = manifest["fingerprint"] if manifest is not None else read_json(self.fingerprint)
        differing = [name for name in {**found, **fingerprint} if found.get(name) != fingerprint.get(name)]
        if differing:
            changes = "; ".join(_change(name, found.get(name), fingerprint.get(name)) for name in differing)
            raise RunFolderError(
                f"{self.root}: holds a run of something else: {changes}; name another output_dir or the same settings"
            )

    def _remove_partial_files(self) -> None:
        """Removes what a process that was killed had begun to write; nobody else writes here while this one may."""
        for folder in (self.root, self.vectors, self.journal):
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        make_root(self.root)
        make_folder(self.journal)
        lock = filelock.FileLock(self.journal / "lock", mode=self.journal.stat().st_mode & 0o666)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunFolderError(f"{self.root}: another process is running in this folder") from error
        self._lock = lock
