"""The claim on a run's folder: whose it is, and whether it may be resumed (`memvec.layout`: what lies where).

A run is identified by its fingerprint: everything that decides what is computed and written. A folder whose fingerprint
differs, or that holds other things, is never written to. What lies there is read before the lock is taken, so that a
stranger's folder gets no file of ours, and again under the lock, since another process may have finished in between.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import filelock

from memvec.data.prepared import is_prepared_for
from memvec.errors import RunFolderError, one_line
from memvec.files import create_file, make_folder, make_root, read_json, write_json
from memvec.layout import MEMORIES, RunLayout
from memvec.schema import VECTOR_DTYPES

log = logging.getLogger(__name__)

# What Hydra or a shell may have put there before the first run of memvec.
ANOTHER = "name another output_dir"
HARMLESS = frozenset({".hydra", "logs", ".DS_Store"})
# Which journal a run has, in its fingerprint; a run of another version is not resumed.
FORMAT = "journal_format"
JOURNAL_FORMAT = 2
# What of the fingerprint decides the vector of given tokens. All else (input, columns, template, tokenizer, limits)
# decides which tokens there are, and may differ where the digests of the tokens themselves are compared.
DECIDES_VECTORS = ("model", "adapter", "layer", "dtype", "precision", "vector_dtype", "normalize", "token_types")
# What a fingerprint that does not name them stands for.
UNSAID = {"vector_dtype": VECTOR_DTYPES[0], "normalize": False, "token_types": False}
# How the fingerprint names the content of files.
DIGEST = re.compile(r"[0-9a-f]{64}")


class RunState(Enum):
    """What `RunFolder.claim` found."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def differences(names: Iterable[str], found: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    """Returns in words how the named parts of a fingerprint that was found differ from those of another."""
    found, fingerprint = UNSAID | found, UNSAID | fingerprint
    return "; ".join(_change(name, found.get(name), fingerprint.get(name)) for name in names)


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
        return self.read_manifest() is not None

    def check_stage_before(self) -> None:
        """Refuses, before the stage before starts, a folder that would be refused once that is complete.

        Raises:
            RunFolderError: A run lies there that had no such stage, or other files do.
        """
        if RunFolder(self.root / MEMORIES).is_finished:
            return  # the claim follows at once
        if self.is_finished or self.fingerprint.is_file():
            raise RunFolderError(self.root, found=f"holds a run of something else, without {MEMORIES}/", advice=ANOTHER)
        self._refuse_other_files({MEMORIES})

    def claim(self, fingerprint: dict[str, Any], *, resume: bool = True) -> RunState:
        """Takes the folder for a run, or says why it cannot be had. To be called by one process of a run.

        Args:
            fingerprint: What decides the vectors; compared with that of the run found there.
            resume: Whether a run found there may be resumed; if not, the folder must be empty.

        Returns:
            Whether there is nothing yet, an unfinished run, or a finished one.

        Raises:
            RunFolderError: Another process works there, another run or other files lie there, or it cannot be written.
        """
        try:
            if self.is_finished:
                self._refuse_other_result(fingerprint, resume=resume)
                return RunState.FINISHED
            if not is_prepared_for(self, fingerprint):
                self._refuse_other_files({MEMORIES} if RunFolder(self.root / MEMORIES).is_finished else set())
            self._take_lock()
            try:
                return self._sign(fingerprint, resume=resume)
            except BaseException:
                self.release()
                raise
        except OSError as error:
            raise RunFolderError(self.root, found=f"the run's folder cannot be used: {one_line(error)}") from error

    def release(self, *, remove_journal: bool = False) -> None:
        """Gives the folder back; with `remove_journal`, what only an unfinished run needs goes, before others come."""
        if remove_journal:
            shutil.rmtree(self.journal, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if remove_journal:
            with suppress(OSError):  # NFS keeps a file that is open under another name until it is closed
                self.journal.rmdir()

    def __getstate__(self) -> dict[str, Any]:
        """A spawned rank gets the paths, not the claim."""
        return {**self.__dict__, "_lock": None}

    def _refuse_other_files(self, before: set[str]) -> None:
        """Refuses a stranger's folder; whether a run lies there is asked last, since one may begin or end meanwhile."""
        found = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        others = [name for name in found if name not in HARMLESS | before | {self.journal.name}]
        if (others or (self.journal.exists() and not self._journal_is_bare())) and not self.holds_run:
            shown = ", ".join(others[:5]) or self.journal.name
            holds = f"holds other files ({shown})"
            raise RunFolderError(self.root, found=holds, advice="name an empty or new output_dir")

    def _journal_is_bare(self) -> bool:
        """Whether a run was killed between making its journal folder and signing it."""
        return all(path.name == "lock" or path.name.endswith(".partial") for path in self.journal.iterdir())

    def _sign(self, fingerprint: dict[str, Any], *, resume: bool) -> RunState:
        """Returns what lies there now that nobody else may work there, and signs it as this run's."""
        if self.is_finished:  # since it was looked at without the lock
            self._refuse_other_result(fingerprint, resume=resume)
            self.release(remove_journal=True)
            return RunState.FINISHED
        state = RunState.NEW
        if self.fingerprint.is_file() or is_prepared_for(self, fingerprint):
            self._refuse_other_run(fingerprint, resume=resume)
            state = RunState.UNFINISHED
        self._remove_partial_files()
        if self._read_fingerprint() != fingerprint:  # there is none yet, or it is damaged
            write_json(self.fingerprint, fingerprint)
        return state

    def _refuse_other_result(self, fingerprint: dict[str, Any], *, resume: bool) -> None:
        """Refuses a finished run with other settings; what an earlier version did not note cannot be compared."""
        self._refuse_resume("a finished", resume)
        found = (self.read_manifest() or {})["fingerprint"]
        names = {**found, **fingerprint}
        if FORMAT in fingerprint and FORMAT not in found:
            names = {name: None for name in found if name in fingerprint}
        self._refuse_differing(names, found, fingerprint, is_finished=True)

    def _refuse_other_run(self, fingerprint: dict[str, Any], *, resume: bool) -> None:
        """Refuses an unfinished run with other settings, or of a version whose journal is another."""
        self._refuse_resume("an unfinished", resume)
        if is_prepared_for(self, fingerprint):
            return  # whatever became of the file with the fingerprint
        found = self._read_fingerprint()
        if found is None:
            raise RunFolderError(self.fingerprint, found="is damaged; nothing else says whose it was", advice=ANOTHER)
        if found.get(FORMAT) != fingerprint.get(FORMAT):
            version = "holds an unfinished run of another version of memvec, which this one cannot resume"
            raise RunFolderError(self.root, found=version, advice=f"finish it with that version, or {ANOTHER}")
        self._refuse_differing({**found, **fingerprint}, found, fingerprint)

    def _refuse_resume(self, which: str, resume: bool) -> None:
        if not resume:
            found = f"holds {which} run and resume=false was given"
            raise RunFolderError(self.root, found=found, advice=f"{ANOTHER} or remove the folder")

    def _refuse_differing(
        self, names: Iterable[str], found: dict[str, Any], fingerprint: dict[str, Any], *, is_finished: bool = False
    ) -> None:
        differing = [name for name in names if name != FORMAT and found.get(name) != fingerprint.get(name)]
        if not differing:
            return
        advice = f"{ANOTHER} or the same settings"
        has_vectors = is_finished and "layer" in found  # a run that has generated texts has no layer
        if has_vectors and "input" in differing and not set(differing) & set(DECIDES_VECTORS):
            advice = f"to compute only what is new: reuse={self.root} output_dir=<another>"
        changes = differences(differing, found, fingerprint)
        raise RunFolderError(self.root, found=f"holds a run of something else: {changes}", advice=advice)

    def _read_fingerprint(self) -> dict[str, Any] | None:
        """Returns the fingerprint of the run that has begun there, or None where it cannot be read."""
        try:
            content = read_json(self.fingerprint)
        except RunFolderError:
            return None
        return content if isinstance(content, dict) else None

    def _remove_partial_files(self) -> None:
        """Removes what a process that was killed had begun to write; nobody else writes here while this one may."""
        for folder in (self.root, self.vectors, self.journal):
            for partial in folder.glob(".*.partial*"):
                partial.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        """Takes the lock, on the file that has its name: one that a run has removed meanwhile keeps nobody out."""
        path = self.journal / "lock"
        while self._lock is None:
            make_root(self.root)
            make_folder(self.journal)
            try:
                os.close(create_file(path, 0))  # a planted link is not followed
                before = path.stat()
                lock = filelock.FileLock(path, mode=before.st_mode & 0o666)
                lock.acquire(timeout=0)
                if path.stat().st_ino == before.st_ino:
                    self._lock = lock
                else:
                    lock.release()
            except FileNotFoundError:
                continue
            except filelock.Timeout as error:
                raise RunFolderError(self.root, found="another process is running in this folder") from error
