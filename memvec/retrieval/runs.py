"""Finished runs that are searched as one.

In: the folder of a run, or of several, or the addresses they were published at. Out: their rows one behind the other,
from the first run's on: vectors as mapped parts, and of a row its columns and its run; or one line that says why they
cannot be searched together.

Why only runs of the same vectors: a cosine between vectors of two models, prompts or layers is a number without a
meaning. Ids may be the same in two runs; a hit says which it is from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from memvec.errors import ConfigError, RunFolderError
from memvec.retrieval.exact import Mapped, mapped_vectors, places_of
from memvec.retrieval.filter import rows_where
from memvec.run.folder import RunFolder
from memvec.run.manifest import Manifest, read_manifest
from memvec.run.remote import local_run
from memvec.run.result import load
from memvec.schema import ID, TEXT
from memvec.urls import masked

Folders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class SearchedRun:
    """A finished run, at one of its layers.

    Args:
        name: Its folder or address, as it was named.
        folder: Where it lies on this machine.
        manifest: What its manifest says.
        layer: Of its vectors.
        column: Where they lie in its rows.
        dataset: Its rows, mapped.
    """

    name: str
    folder: RunFolder
    manifest: Manifest
    layer: int
    column: str
    dataset: Dataset

    @classmethod
    def find(cls, name: str, root: Path, layer: int | None) -> SearchedRun:
        """Returns the run that lies in a folder.

        Args:
            name: As it was named.
            root: The folder.
            layer: One of the run's; may be None where it has one.

        Raises:
            ConfigError: It has no such layer, or several and none is named.
            RunFolderError: There is no finished run, or a file of it is missing or damaged.
        """
        folder = RunFolder(root)
        manifest = read_manifest(folder)
        columns = manifest.columns(layer)
        if len(columns) > 1:
            raise ConfigError("layer", found=f"not set, and {name} holds several", allowed=columns)
        [(one, column)] = columns.items()
        return cls(name, folder, manifest, one, column, load(folder.root))

    @property
    def vectors(self) -> list[Mapped]:
        """Its vectors, mapped."""
        return mapped_vectors(self.dataset, self.column)

    @property
    def decides_vectors(self) -> dict[str, Any]:
        """What has to be the same in runs that are searched as one."""
        return {**self.manifest.fingerprint, "layer": self.layer, "normalize": self.manifest.normalize}


class SearchedRuns:
    """The rows of runs, one behind the other.

    Args:
        named: The folder of a run, or a list of several.
        layer: One of theirs; may be None where each has one.

    Raises:
        ConfigError: No run is named, or one twice; or one has no such layer.
        RunFolderError: One is not there, not finished or damaged, or their vectors cannot be compared.
    """

    def __init__(self, named: Folders, *, layer: int | None = None) -> None:
        self.runs = [SearchedRun.find(name, root, layer) for name, root in named_folders(named)]
        self.first = self.runs[0]
        for other in self.runs[1:]:
            _refuse_other_vectors(self.first, other)
        self._ends = np.cumsum([len(run.dataset) for run in self.runs])
        self._rows = [_readable(run) for run in self.runs]

    def __len__(self) -> int:
        """N, how many rows they have together."""
        return int(self._ends[-1])

    @property
    def vectors(self) -> list[Mapped]:
        """The vectors of all rows, mapped."""
        return [part for run in self.runs for part in run.vectors]

    def rows_where(self, where: str) -> NDArray[np.bool_]:
        """Returns for which rows an SQL condition is true, `[N]`."""
        return np.concatenate([rows_where(run.dataset, where) for run in self.runs])

    def rows_at(self, positions: NDArray[np.int64]) -> Iterator[tuple[SearchedRun, dict[str, Any]]]:
        """Yields for each position the run, and the row without its vectors."""
        for place, row in places_of(positions, self._ends):
            yield self.runs[place], self._rows[place][row]


def named_folders(named: Folders) -> list[tuple[str, Path]]:
    """Returns the runs that are named, one or a list: each by its name, with the folder it lies in on this machine.

    Raises:
        ConfigError: There is none, or one twice.
        RunFolderError: One cannot be fetched from its address.
    """
    names = [named] if isinstance(named, str | os.PathLike) else list(named)
    if not names:
        raise ConfigError("output_dir", [], allowed="the folder of a run, or a list of at least one")
    roots = [RunFolder(local_run(name)).root for name in names]
    if twice := next((name for name, root in zip(names, roots, strict=True) if roots.count(root) > 1), None):
        raise ConfigError("output_dir", found=f"names {masked(str(twice))} twice")
    return [(masked(str(name)), root) for name, root in zip(names, roots, strict=True)]


def _readable(run: SearchedRun) -> Dataset:
    columns = [name for name in (ID, TEXT, *run.manifest.keep_columns) if name in run.dataset.column_names]
    return run.dataset.with_format(None).select_columns(columns)


def _refuse_other_vectors(first: SearchedRun, other: SearchedRun) -> None:
    """Refuses a run whose vectors cannot be compared with the first one's."""
    mine, theirs = first.decides_vectors, other.decides_vectors
    differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if differing:
        changes = "; ".join(f"{name} is {theirs.get(name)!r}, there {mine.get(name)!r}" for name in differing)
        raise RunFolderError(other.name, found=f"cannot be searched as one with {first.name}: {changes}")
