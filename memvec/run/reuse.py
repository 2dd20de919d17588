"""The vectors that finished runs have already, so that only what is new is computed.

    python -m memvec.predict data.path=memories.jsonl reuse=runs/monday output_dir=runs/tuesday

In: the folders of finished runs, and a run whose rows are prepared. Out: frames in its journal, signed as its own, for
every row left whose prompt one of those runs has a vector of.

How: each row of a result carries the digest of its prompt's tokens, by which it is found; ids, texts, templates and
order are not looked at, since tokens and model decide a vector. Parquet files are verified as for whoever else reads
them, and read batch by batch: those without a row that is left only as far as their digests. Since the journal then has
these rows, whatever comes after (resuming, the ranks, finalising) need not know of it; a copy that was killed resumes
with the rows that the journal lacks.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from memvec.config.values import one_or_more_texts
from memvec.data.prepared import read_signature
from memvec.data.tokenise import prompt_digests
from memvec.digest import DigestIndex
from memvec.errors import RunFolderError, one_line
from memvec.fields import JsonObject
from memvec.layout import RunLayout
from memvec.remote import local_path
from memvec.run.folder import DECIDES_VECTORS, differences
from memvec.run.manifest import read_manifest
from memvec.run.parts import check_parts, digests_of, has_column, read_batches
from memvec.run.remote import local_run
from memvec.schema import PROMPT_DIGEST, VECTOR_DTYPES, vector_columns
from memvec.urls import is_url, masked
from memvec.writer.journal import JournalWriter, copied_rows, vector_rows

DIGESTS = pa.schema([(PROMPT_DIGEST, pa.string())])


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with vectors, and the digests of their prompts.

    Args:
        name: Its folder or address, as the user has named it.
        folder: Where it lies on this machine.
        fingerprint: What decided its vectors, as its manifest says.
        parts: Its Parquet files.
        dimension: D, of each layer.
    """

    name: str
    folder: RunLayout
    fingerprint: dict[str, Any]
    parts: list[Path]
    dimension: int

    @property
    def schema(self) -> pa.Schema:
        """The columns that are copied, digests and vectors; `check_runs` has compared the fingerprint."""
        numbers = pa.from_numpy_dtype(self.fingerprint.get("vector_dtype", VECTOR_DTYPES[0]))
        columns = vector_columns(self.fingerprint["layer"]).values()
        return pa.schema([*DIGESTS, *((name, pa.list_(numbers, self.dimension)) for name in columns)])


def find_runs(named: str | Sequence[str] | None, *, own: RunLayout) -> list[FinishedRun]:
    """Returns the finished runs that `reuse` names.

    Args:
        named: Their folders, globs of these, or a list of both; None names none.
        own: The run that takes their vectors; a glob that matches its folder does not mean it.

    Raises:
        ConfigError: `reuse` is no text and no list of texts.
        RunFolderError: A run is not there, not finished, damaged, or of a version that noted no digests.
    """
    names = [] if named is None else one_or_more_texts("reuse", named)
    try:
        found = {Path(folder).resolve(): shown for name in names for shown, folder in _folders(name, own)}
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise RunFolderError("reuse", named, found=f"cannot be read: {one_line(error)}") from error
    return [_finished_run(name, RunLayout(root)) for root, name in found.items()]


def check_runs(runs: Sequence[FinishedRun], fingerprint: dict[str, Any]) -> None:
    """Compares finished runs with the one that takes their vectors.

    Args:
        runs: The finished ones.
        fingerprint: Of the one that takes their vectors.

    Raises:
        RunFolderError: One is of another model, layer or precision.
    """
    for run in runs:
        found = run.fingerprint
        if differing := [name for name in DECIDES_VECTORS if found.get(name) != fingerprint.get(name)]:
            changes = differences(differing, found, fingerprint)
            raise RunFolderError(run.name, found=f"its vectors cannot be reused in this run: {changes}")


def known_rows(runs: Sequence[FinishedRun], folder: RunLayout) -> dict[str, NDArray[np.int64]]:
    """Returns which of the rows left have a vector in which run, the first that has it, by the run's name.

    Args:
        runs: The finished runs.
        folder: Of the run that takes their vectors; its rows are prepared.
    """
    rows, index = _rows_left(folder)
    is_left = np.ones(len(rows), dtype=bool)
    known: dict[str, NDArray[np.int64]] = {}
    for run in runs:
        before = is_left.copy()
        for part in run.parts:
            is_left[_positions_in(part, index, is_left)] = False
        known[run.name] = rows[before & ~is_left]
    return known


def seed_journal(runs: Sequence[FinishedRun], folder: RunLayout) -> None:
    """Copies the vectors that runs have of the rows left into the journal, a file for each run.

    Args:
        runs: The finished runs.
        folder: Of the run that takes their vectors; its rows are prepared.

    Raises:
        RunFolderError: A file of a run is damaged; what was copied before counts.
        WriterError: The journal cannot be written.
    """
    rows, index = _rows_left(folder)
    is_left = np.ones(len(rows), dtype=bool)
    signature = read_signature(folder)
    for run in runs:
        with JournalWriter(folder.journal, rank=0, signature=signature) as journal:
            for batch in _batches_to_copy(run, index, is_left):
                positions, first = np.unique(index.find(digests_of(batch)), return_index=True)
                usable = (positions >= 0) & is_left[positions]
                if usable.any():
                    positions = positions[usable]
                    vectors = vector_rows(rows[positions], _vectors(batch, first[usable]))
                    journal.append_rows(copied_rows(vectors, run.name))
                    is_left[positions] = False


def _folders(name: str, own: RunLayout) -> list[tuple[str, str]]:
    """Returns the folders that a name, an address or a glob stands for, each behind what messages call it."""
    if is_url(local_path(name)):
        return [(masked(name), str(local_run(name)))]
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if path.is_dir():
        return [(str(path), str(path))]
    if not glob.has_magic(name):
        raise RunFolderError("reuse", name, found="no such folder")
    # Not `Path.glob`, which takes no absolute pattern and does not pass over hidden folders.
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    folders = [str(match) for match in matches if match.is_dir() and match.resolve() != own.root]
    if not folders:
        raise RunFolderError("reuse", name, found="the glob matches no folder of another run")
    return [(folder, folder) for folder in folders]


def _finished_run(name: str, folder: RunLayout) -> FinishedRun:
    manifest = read_manifest(folder)
    if manifest.prompt is None or manifest.dimension is None:
        raise RunFolderError(folder.root, found="holds memory texts, and no vectors to reuse")
    parts = check_parts(folder, manifest)
    if not all(has_column(part, PROMPT_DIGEST) for part in parts):
        found = "was made by an earlier version of memvec, which did not note of which prompts its vectors are"
        raise RunFolderError(folder.root, found=found, advice="run it anew to reuse it")
    fingerprint = JsonObject.read(folder.manifest).within("fingerprint").content
    return FinishedRun(name, folder, fingerprint, parts, manifest.dimension)


def _rows_left(folder: RunLayout) -> tuple[NDArray[np.int64], DigestIndex]:
    """Returns the rows that are left to compute, `[R]`, and where each of their digests stands among them."""
    rows: NDArray[np.int64] = np.load(folder.remaining_rows)
    return rows, DigestIndex(prompt_digests(Dataset.from_file(str(folder.prompts)).data.table)[rows])


def _batches_to_copy(run: FinishedRun, index: DigestIndex, is_left: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    """Yields the batches of those files of a run that have a vector of a row left."""
    for part in run.parts:
        if len(_positions_in(part, index, is_left)):
            yield from read_batches(part, run.schema)


def _positions_in(part: Path, index: DigestIndex, is_left: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the positions in the index of those rows left that a file has vectors of, each once."""
    if not is_left.any():
        return np.empty(0, dtype=np.int64)
    found = [index.find(digests_of(batch)) for batch in read_batches(part, DIGESTS)]
    positions: NDArray[np.int64] = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *found]))
    return positions[(positions >= 0) & is_left[positions]]


def _vectors(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Returns the vectors of some rows as the journal has them, `[B, D]`; of several layers `[B, L * D]`."""
    layers = [batch.column(name) for name in batch.schema.names if name != PROMPT_DIGEST]
    return np.concatenate([layer.flatten().to_numpy().reshape(len(batch), -1)[rows] for layer in layers], axis=1)
