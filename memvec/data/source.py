"""Turns `data.path` into the list of sources it names: files, or one dataset.

In: a file, folder, glob, address, `datasets` folder or Hub dataset name, or a list of them. Out: `Source`s in a fixed
order (a folder's files sorted by name), each able to yield its records and to say a digest of its content, which goes
into the run's fingerprint: a resume over changed input is refused.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa

from memvec.data.folders import broken_link, files_of_folder, files_of_glob, files_of_split, glob_root, root_of_file
from memvec.data.formats.columnar import columns_with, dataset_tables
from memvec.data.formats.fields import Record
from memvec.data.formats.files import COMPRESSIONS, SUFFIXES, TextFormat, check_regular, file_format
from memvec.data.reader import column_names, column_types, read_dataset, read_file
from memvec.data.remote import fetch
from memvec.data.runs import outside_runs
from memvec.errors import InputError, one_line
from memvec.quiet import hub_warns_once
from memvec.remote import local_path
from memvec.urls import is_url

# What the Hub accepts as a dataset's name: https://huggingface.co/docs/hub/repositories-getting-started
HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
SAVED_DATASET = ("state.json", "dataset_info.json")  # what `Dataset.save_to_disk` writes beside its Arrow files
DEFAULT_SPLIT = "train"  # of a dataset with splits
ALLOWED = (
    f"a {' '.join(SUFFIXES)} file (text formats also {' '.join(COMPRESSIONS)}), a folder or glob of them, "
    "here or at an address (s3:// gs:// hf:// https://), or a Hub dataset name"
)


@dataclass(frozen=True)
class Source:
    """One file, or one loaded dataset.

    Args:
        name: What messages and `rejected.jsonl` call it.
        content: The file's path, or the loaded dataset.
        text_format: How a text file is read where it does not say it itself.
    """

    name: str
    content: Path | datasets.Dataset
    text_format: TextFormat = field(default_factory=TextFormat)

    @property
    def has_columns(self) -> bool:
        """Whether its rows have named fields; the lines of a `.txt` file have none."""
        return not isinstance(self.content, Path) or file_format(self.content) != ".txt"

    def records(self, *, text_column: str, id_column: str | None, more: Sequence[str] = ()) -> Iterator[Record]:
        """Yields `(row, id, text, *more)` as `memvec.data.reader` says."""
        if isinstance(self.content, Path):
            rows = read_file(
                self.content, text_column=text_column, id_column=id_column, more=more, text_format=self.text_format
            )
            return rows if self.name == str(self.content) else _naming(rows, self.content, self.name)
        return read_dataset(self.content, name=self.name, text_column=text_column, id_column=id_column, more=more)

    def column_types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        """Returns the types of fields by their names, as far as there are any and the source declares them."""
        with self._readable():
            return column_types(self.content, names)

    def column_names(self, *, text_column: str) -> list[str]:
        """Returns the names of the fields that a user may mean."""
        with self._readable():
            return column_names(self.content, text_column=text_column, text_format=self.text_format)

    def digest(self, *, columns: Sequence[str | None]) -> str:
        """Returns a hex SHA-256 of the file's bytes, or of the named columns of the dataset."""
        with self._readable():
            return self._digest(columns)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise InputError(self.name, found=f"cannot be read: {one_line(error)}") from error

    def _digest(self, columns: Sequence[str | None]) -> str:
        if isinstance(self.content, Path):
            with self.content.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        state = hashlib.sha256()
        present = columns_with(columns, self.content.data.schema)
        for table in dataset_tables(self.content, present, name=self.name):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
                writer.write_table(table.combine_chunks().cast(table.schema.remove_metadata()))
            state.update(sink.getvalue())
        return state.hexdigest()


def _naming(rows: Iterator[Record], copy: Path, name: str) -> Iterator[Record]:
    """Yields the rows of a file that was fetched; messages name its address in the place of its copy."""
    try:
        yield from rows
    except InputError as error:
        error.subject, error.found = (text.replace(str(copy), name) for text in (error.subject, error.found))
        raise


def find_sources(
    path: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    revision: str | None = None,
    text_format: TextFormat | None = None,
    is_resumed: bool = False,
) -> list[Source]:
    """Returns the sources that `data.path` names, in reading order.

    Args:
        path: A file, folder, glob, folder of `Dataset.save_to_disk`, Hub dataset name, the address of a file or folder
            or a glob of addresses, or a list of these.
        split: The split to read; None reads `train` of a dataset with splits, and all files of a folder or glob.
        revision: Revision of a Hub dataset; None is its main branch.
        text_format: How text files are read where they do not say it themselves.
        is_resumed: Whether a run is resumed that has read them before: then remote files need not be there any more.

    Raises:
        ConfigError: An address cannot be used.
        ExtraError: The package of its protocol is not installed.
        InputError: Nothing is there, what is there cannot be read, or has no such split.
    """
    names = [path] if isinstance(path, str | Path) else path
    is_list = isinstance(names, Sequence) and all(isinstance(name, str | Path) and str(name) for name in names)
    if not is_list or not names:
        raise InputError("data.path", path, allowed=f"{ALLOWED}, or a list of these")
    formats = text_format or TextFormat()
    try:
        found = []
        for name in map(str, names):
            if is_url(local := local_path(name)):
                copies = fetch(local, split=split, is_resumed=is_resumed)
                found += [Source(address, copy, formats) for address, copy in copies]
            else:
                found += _sources_of(local, split, revision, formats)
        return found
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError("data.path", path, found=f"cannot be read: {one_line(error)}") from error


def _sources_of(name: str, split: str | None, revision: str | None, text_format: TextFormat) -> list[Source]:
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or all((path / marker).exists() for marker in SAVED_DATASET):
            return [Source(str(path), one_split(_saved_dataset(path), str(path), split))]
        root, files = path, outside_runs(files_of_folder(path), root=path, name=name)
    elif path.exists():
        check_regular(path)
        if file_format(path) is None:
            raise InputError(path, found=f"unknown format {path.suffix or '(no suffix)'!r}", allowed=ALLOWED)
        root, files = root_of_file(path), [path]
    elif path.is_symlink():
        raise broken_link(path)
    elif glob.has_magic(name):
        root = glob_root(str(path))
        files = outside_runs(files_of_glob(str(path)), root=root, name=name)
    elif HUB_NAME.fullmatch(name) and file_format(path) is None:
        return [_hub_source(name, split, revision)]
    else:
        raise InputError(name, found="no such file or folder", allowed=ALLOWED)
    if split is not None:
        files = files_of_split(files, split, root=root, name=name)
    return [Source(str(file), file, text_format) for file in files]


def _saved_dataset(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    # What is missing or damaged in there comes as an error of any of a dozen types.
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:
        raise InputError(folder, found=f"cannot be read as a folder of save_to_disk: {one_line(error)}") from error


def one_split(loaded: datasets.Dataset | datasets.DatasetDict, name: str, split: str | None) -> datasets.Dataset:
    """Returns one split of what is loaded.

    Args:
        loaded: A dataset, or several by the names of their splits.
        name: What messages call it.
        split: The split's name; None is `train` of several.

    Raises:
        InputError: There is no such split.
    """
    if isinstance(loaded, datasets.Dataset):
        if split is not None and split != str(loaded.split):
            found = f"it is the split {str(loaded.split)!r}" if loaded.split is not None else "it has no splits"
            raise InputError(name, found=f"no split {split!r}; {found}", advice="data.split=null reads it")
        return loaded
    if (split or DEFAULT_SPLIT) not in loaded:
        found = f"no split {split or DEFAULT_SPLIT!r}; splits found: {', '.join(loaded)}"
        raise InputError(name, found=found, advice="set data.split")
    return loaded[split or DEFAULT_SPLIT]


def _hub_source(name: str, split: str | None, revision: str | None) -> Source:
    # The datasets library raises errors of a dozen unrelated types here (network, authentication, name, split).
    try:
        with hub_warns_once():
            return Source(name, datasets.load_dataset(name, split=split or DEFAULT_SPLIT, revision=revision))
    except Exception as error:
        found = f"no such file or folder, and as a Hub dataset it cannot be loaded: {one_line(error)}"
        raise InputError(name, found=found) from error
