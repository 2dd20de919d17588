"""The prepared files of a run: what is made of the input before anything is computed, and which rows are left.

In: what writes the usable rows of the input, and a prompt encoder. Out: files in the run's journal folder:

    entries.arrow        id, text, file, row                of every usable row
    kept.arrow           the columns that are kept, if any  row by row the same
    prompts.arrow        input_ids, length, …               row by row the same
    first_rows.npy       for every row the first with an equal prompt, which alone is computed
    remaining_rows.npy   the rows to compute in this attempt: those first rows, less what the journal holds
    prepared.json        the checksums of all but the last, and the run they belong to

How: one process prepares, and every process of the run then maps the same files. A run that resumes compares each file
with its checksum: what is missing or damaged is made again, and what was made of it too. What is computed is signed
with the run's fingerprint and the content of entries and prompts, so that it is never taken for other rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from memvec.data.dataset import EntriesSummary
from memvec.data.tokenise import prompt_digests, tokenise
from memvec.digest import DIGEST_BYTES, as_pairs, digest, first_occurrence
from memvec.errors import RunFolderError
from memvec.files import atomic_file, read_json, write_json
from memvec.layout import RunLayout
from memvec.prompt.encoder import PromptEncoder
from memvec.schema import TEXT

log = logging.getLogger(__name__)


class Signature(NamedTuple):
    """What a result is signed with: it counts for these rows of this run alone.

    Args:
        run: 16 bytes, a digest of the run's fingerprint.
        rows: 16 bytes, a digest of the run's entries and prompts.
    """

    run: bytes
    rows: bytes


class PreparedRows:
    """The prepared files of a run's folder.

    Args:
        folder: The run's folder.
        encoder: Makes a text a prompt; None where others tokenise: then equal texts are computed once.
        write_entries: Reads the input and writes the usable rows and the rejected ones.
    """

    def __init__(
        self, folder: RunLayout, *, encoder: PromptEncoder | None, write_entries: Callable[[], EntriesSummary]
    ) -> None:
        self.folder = folder
        self.encoder = encoder
        self.write_entries = write_entries

    def prepare(self) -> None:
        """Makes the files that are not there or are not what they were, and all that is made of other content."""
        folder, run = self.folder, _run_digest(self.folder)
        steps: list[tuple[Callable[[], None], tuple[Path, ...]]] = [
            (
                self._make_entries,
                (folder.conversations, folder.entries, folder.kept, folder.input_rejected, folder.input_summary),
            ),
            (self._make_prompts, (folder.prompts,)),
            (self._make_first_rows, (folder.first_rows,)),
        ]
        if self.encoder is None:
            del steps[1]
        known, files = _read_record(folder, run=run), dict[str, str]()
        made_of_other_content = False
        for make, paths in steps:
            expected = {path.name: known[path.name] for path in paths if path.name in known}
            damaged = [path for path in paths if path.name in expected and _checksum(path) != expected[path.name]]
            for path in damaged:
                log.warning("%s: is missing or damaged; it is made again", path)
            if damaged or not expected or made_of_other_content:
                make()
                found = {path.name: checksum for path in paths if (checksum := _checksum(path)) is not None}
                made_of_other_content = made_of_other_content or found != expected
                later = {} if made_of_other_content else known
                _write_record(folder, {**later, **files, **found}, run=run)
                expected = found
            files |= expected

    def find_remaining(self, is_done: Callable[[int], NDArray[np.bool_]]) -> None:
        """Finds the rows that are left to compute: the first of equal prompts, less what is done.

        Args:
            is_done: Returns for so many rows, `[N]` bool, whether the journal has all there will be.
        """
        first = np.load(self.folder.first_rows, mmap_mode="r")
        is_left = (first == np.arange(len(first))) & ~is_done(len(first))
        _save(self.folder.remaining_rows, np.flatnonzero(is_left))

    def count_remaining(self) -> int:
        """Returns how many rows are left to compute."""
        return len(np.load(self.folder.remaining_rows, mmap_mode="r"))

    def _make_entries(self) -> None:
        write_json(self.folder.input_summary, asdict(self.write_entries()))

    def _make_prompts(self) -> None:
        if self.encoder is not None:
            tokenise(self.folder.entries, self.folder.prompts, self.encoder)

    def _make_first_rows(self) -> None:
        if self.encoder is not None:
            digests = prompt_digests(Dataset.from_file(str(self.folder.prompts)).data.table)
        else:
            texts = Dataset.from_file(str(self.folder.entries)).data.column(TEXT)
            digests = as_pairs(b"".join(digest(text.as_py().encode()) for text in texts))
        _save(self.folder.first_rows, first_occurrence(digests))


def read_signature(folder: RunLayout) -> Signature:
    """Returns what signs the results of the rows that are prepared in a run's folder.

    Raises:
        RunFolderError: Nothing is prepared there.
    """
    run = _run_digest(folder)
    files = _read_record(folder, run=run)
    try:
        rows = digest((files[folder.entries.name] + files.get(folder.prompts.name, "")).encode())
    except KeyError as error:
        advice = "run the same command again, which makes it again"
        raise RunFolderError(folder.prepared, found="is missing or damaged", advice=advice) from error
    return Signature(run, rows)


def is_prepared_for(folder: RunLayout, fingerprint: dict[str, Any]) -> bool:
    """Whether what is prepared in a run's folder is for the run with this fingerprint."""
    return bool(_read_record(folder, run=_digest_of(fingerprint)))


def _run_digest(folder: RunLayout) -> bytes:
    """Returns the digest of the run's fingerprint; a plan has none."""
    return _digest_of(read_json(folder.fingerprint)) if folder.fingerprint.exists() else bytes(DIGEST_BYTES)


def _digest_of(content: Any) -> bytes:
    return digest(json.dumps(content, sort_keys=True).encode())


def _read_record(folder: RunLayout, *, run: bytes) -> dict[str, str]:
    """Returns the checksums of the prepared files by name; none where the record is damaged or of another run."""
    try:
        record = read_json(folder.prepared)
        seal = record.pop("seal")
    except (RunFolderError, AttributeError, KeyError, TypeError):
        return {}
    if seal != _digest_of(record).hex() or record.get("run") != run.hex():
        return {}
    files: dict[str, str] = record["files"]
    return files


def _write_record(folder: RunLayout, files: dict[str, str], *, run: bytes) -> None:
    record = {"run": run.hex(), "files": files}
    write_json(folder.prepared, {**record, "seal": _digest_of(record).hex()})


def _checksum(path: Path) -> str | None:
    """Returns a hex digest of a file's content, or None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
    except OSError:
        return None


def _save(path: Path, rows: NDArray[np.int64]) -> None:
    with atomic_file(path) as partial, partial.open("wb") as stream:
        np.save(stream, rows)
