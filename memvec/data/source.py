"""Turns `data.path` into the list of sources it names: files, or one dataset.

In: a file, folder, glob, `datasets` folder or Hub dataset name, or a list of them. Out: `Source`s in a fixed order
(a folder's files sorted by name), each able to yield its records and to say a digest of its content, which goes into
the run's fingerprint: a resume over changed input is refused.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import datasets
import pyarrow as pa

from memvec.data.reader import RECORDS_PER_READ, SUFFIXES, Record, file_format, read_dataset, read_file
from memvec.data.runs import outside_runs
from memvec.errors import InputError, one_line
from memvec.hub import hub_warns_once

# What the Hub accepts as a dataset's name: https://huggingface.co/docs/hub/repositories-getting-started
HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
SAVED_DATASET = ("state.json", "dataset_info.json")  # what `Dataset.save_to_disk` writes beside its Arrow files
ALLOWED = f"a {' '.join(SUFFIXES)} file (text formats also .gz), a folder or glob of them, or a Hub dataset name"


@dataclass(frozen=True)
class Source:
    """One file, or one loaded dataset.

    Args:
        name: What messages and `rejected.jsonl` call it.
        content: The file's path, or the loaded dataset.
    """

    name: str
    content: Path | datasets.Dataset

    @property
    def has_columns(self) -> bool:
        """Whether its rows have named fields; the lines of a `.txt` file have none."""
        return not isinstance(self.content, Path) or file_format(self.content) != ".txt"

    def records(self, *, text_column: str, id_column: str | None, more: Sequence[str] = ()) -> Iterator[Record]:
        """Yields `(row, id, text, *more)` as `memvec.data.reader` says."""
        if isinstance(self.content, Path):
            return read_file(self.content, text_column=text_column, id_column=id_column, more=more)
        return read_dataset(self.content, name=self.name, text_column=text_column, id_column=id_column, more=more)

    def digest(self, *, columns: Sequence[str | None]) -> str:
        """Returns a hex SHA-256 of the file's bytes, or of the named columns of the dataset."""
        if isinstance(self.content, Path):
            try:
                with self.content.open("rb") as stream:
                    return hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{self.name}: cannot be read: {one_line(error)}") from error
        present = [name for name in columns if name in self.content.column_names]
        state = hashlib.sha256()
        for table in self.content.select_columns(present).with_format("arrow").iter(RECORDS_PER_READ):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
                writer.write_table(table.combine_chunks().cast(table.schema.remove_metadata()))
            state.update(sink.getvalue())
        return state.hexdigest()


def find_sources(path: str | Sequence[str], *, split: str = "train", revision: str | None = None) -> list[Source]:
    """Returns the sources that `data.path` names, in reading order.

    Args:
        path: A file, folder, glob, folder of `Dataset.save_to_disk`, Hub dataset name, or a list of these.
        split: The split to read where the path names a dataset with splits.
        revision: Revision of a Hub dataset; None is its main branch.

    Raises:
        InputError: Nothing is there, or what is there cannot be read.
    """
    names = [path] if isinstance(path, str) else list(path)
    if not all(map(str, names)) or not names:
        raise InputError(f"data.path is empty; allowed: {ALLOWED}")
    try:
        return [source for name in names for source in _sources_of(str(name), split, revision)]
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"data.path={path}: cannot be read: {one_line(error)}") from error


def _sources_of(name: str, split: str, revision: str | None) -> list[Source]:
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if path.is_dir():
        return _sources_of_folder(path, split)
    if path.exists():
        if file_format(path) is None:
            raise InputError(f"{path}: unknown format {path.suffix or '(no suffix)'!r}; allowed: {ALLOWED}")
        return [Source(str(path), path)]
    if path.is_symlink():
        raise _broken_link(path)
    if glob.has_magic(name):
        # Not `Path.glob`, which takes no absolute pattern and does not pass over hidden files.
        matched = sorted(Path(found) for found in glob.glob(str(path), recursive=True))  # noqa: PTH207
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        return _file_sources(matched, root, name) or _nothing(f"{name}: the glob matches")
    if HUB_NAME.fullmatch(name) and file_format(path) is None:
        return [_hub_source(name, split, revision)]
    raise InputError(f"{name}: no such file or folder; allowed: {ALLOWED}")


def _sources_of_folder(folder: Path, split: str) -> list[Source]:
    if (folder / "dataset_dict.json").exists() or all((folder / name).exists() for name in SAVED_DATASET):
        return [Source(str(folder), _one_split(_saved_dataset(folder), str(folder), split))]
    files = sorted(_visible_files(folder))
    return _file_sources(files, folder, str(folder)) or _nothing(f"{folder}: the folder holds")


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yields what is in a folder and its subfolders but for hidden files; linked folders are entered, each once."""
    entered: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        entered.add(os.path.realpath(root))
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in visible if os.path.realpath(Path(root, name)) not in entered]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _file_sources(paths: Iterable[Path], root: Path, name: str) -> list[Source]:
    """Keeps the files of our formats; a broken link to one is an error, since its rows would be missed silently."""
    known = outside_runs([path for path in paths if file_format(path)], root=root, name=name)
    for path in known:
        if path.is_symlink() and not path.exists():
            raise _broken_link(path)
    return [Source(str(path), path) for path in known if path.is_file()]


def _broken_link(path: Path) -> InputError:
    return InputError(f"{path}: a link to a file that does not exist")


def _nothing(place: str) -> NoReturn:
    raise InputError(f"{place} no file with one of {' '.join(SUFFIXES)}")


def _saved_dataset(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    # What is missing or damaged in there comes as an error of any of a dozen types.
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:
        raise InputError(f"{folder}: cannot be read as a folder of save_to_disk: {one_line(error)}") from error


def _one_split(loaded: datasets.Dataset | datasets.DatasetDict, name: str, split: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise InputError(f"{name}: no split {split!r}; splits found: {', '.join(loaded)} (set data.split)")
    return loaded[split]


def _hub_source(name: str, split: str, revision: str | None) -> Source:
    # The datasets library raises errors of a dozen unrelated types here (network, authentication, name, split).
    try:
        with hub_warns_once():
            return Source(name, datasets.load_dataset(name, split=split, revision=revision))
    except Exception as error:
        raise InputError(
            f"{name}: no such file or folder, and as a Hub dataset it cannot be loaded: {one_line(error)}"
        ) from error
