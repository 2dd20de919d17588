"""The data files of a folder or a glob, and of one split of them.

In: a folder, or a pattern. Out: paths of files of our formats, sorted.

What is not data is passed over: names that begin with `.` or `_` (Spark's `_temporary`, `_SUCCESS`), and what the Hub
and `datasets` write beside their files. A table whose log says which of its files count (Delta, Iceberg, Hudi) is
refused: its folder also holds rows that were deleted or replaced. Partition folders (`year=2024/`) are folders.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from memvec.data.formats.files import SUFFIXES, check_regular, file_format
from memvec.errors import InputError

HIDDEN = (".", "_")
NOT_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
ICEBERG_METADATA = ("*.metadata.json", "*.avro", "version-hint.text")

# As `datasets` tells splits apart: huggingface.co/docs/datasets/repository_structure
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
SPLIT_SEPARATORS = re.compile(r"[-._ =0-9]+")
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\b")


def files_of_folder(folder: Path) -> list[Path]:
    """Returns the data files of a folder and its subfolders.

    Raises:
        InputError: It holds none, or one that cannot be read, or it is a table with a log.
    """
    return sorted(_data_files(_visible_files(_data_folder(folder)))) or no_data(folder, "the folder holds")


def files_of_glob(pattern: str) -> list[Path]:
    """Returns the data files that a pattern matches.

    Raises:
        InputError: As `files_of_folder`.
    """
    # Not `Path.glob`, which takes no absolute pattern and does not pass over hidden files.
    matched = [Path(found) for found in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    root, *rest = split_at_magic(pattern)
    found: list[Path] = []
    for path in matched:
        parts = path.relative_to(root).parts
        if is_passed_over(parts, typed=rest):
            continue
        for parent in [path, *path.parents][: len(parts) + 1]:
            _refuse_table(parent)
        # Spark writes folders that are called like files.
        is_folder = path.is_dir() and file_format(path) is not None
        found += _data_files(_visible_files(path)) if is_folder else _data_files([path])
    return sorted(set(found)) or no_data(pattern, "the glob matches")


def files_of_split(files: Sequence[Path], split: str, *, root: Path, name: str) -> list[Path]:
    """Returns the files whose names, or whose innermost folder's that names any, say that they belong to a split.

    Args:
        files: Data files.
        split: The split's name.
        root: The folder below which names count.
        name: What messages call the input.

    Raises:
        InputError: There is no such split.
    """
    asked = next((known for known, words in SPLIT_WORDS.items() if split in words), split)
    splits = {path: _splits_of(path.relative_to(root), split) for path in files}
    chosen = [path for path, found in splits.items() if asked in found]
    if not chosen:
        names = sorted(set().union(*splits.values()))
        found = f"splits found: {', '.join(names)}" if names else "its files are not laid out in splits"
        raise InputError(name, found=f"no split {split!r}; {found}", advice="data.split=null reads all files")
    return chosen


def is_data(path: Path) -> bool:
    """Whether a file's name says that it is data."""
    return file_format(path) is not None and path.name not in NOT_DATA


def is_passed_over(parts: Sequence[str], *, typed: Sequence[str] = ()) -> bool:
    """Whether a file is hidden.

    Args:
        parts: The parts of its path below what the user has named.
        typed: The parts of a pattern that matches it; what begins as hidden names do asks for these.
    """
    return any(_is_hidden(part) and not any(one.startswith(part[0]) for one in typed) for part in parts)


def refuse_table_among(paths: Iterable[Path], *, name: str) -> None:
    """Refuses files of which only a log knows which count; for files that are listed and not on this machine.

    Args:
        paths: All files of a folder.
        name: What messages call it.

    Raises:
        InputError: A table's log is among them.
    """
    for path in paths:
        if "_delta_log" in path.parts[:-1]:
            raise _table_error(name, "Delta Lake")
        if ".hoodie" in path.parts[:-1]:
            raise _table_error(name, "Hudi")
        if path.parent.name == "metadata" and any(fnmatchcase(path.name, pattern) for pattern in ICEBERG_METADATA):
            raise _table_error(name, "Iceberg")


def root_of_file(file: Path) -> Path:
    """Returns the folder below which the names of one file count: one called exactly as a split is tells its split."""
    is_split = any(file.parent.name.lower() in words for words in SPLIT_WORDS.values())
    return file.parent.parent if is_split else file.parent


def _splits_of(path: Path, asked: str) -> set[str]:
    for part in (path.name, *reversed(path.parts[:-1])):
        if part == asked or part.partition(".")[0] == asked:
            return {next((known for known, words in SPLIT_WORDS.items() if asked in words), asked)}
        words = set(SPLIT_SEPARATORS.split(part.lower()))
        if found := {split for split, known in SPLIT_WORDS.items() if words & known}:
            return found
        if shard := SHARD.match(part):
            return {shard[1]}
    return set()


def _data_folder(folder: Path) -> Path:
    """Returns where the files of a dataset lie that is laid out as on the Hub: apart from its card and its licence."""
    data = folder / "data"
    is_dataset = (folder / "dataset_infos.json").exists() or _is_dataset_card(folder / "README.md")
    return data if is_dataset and data.is_dir() and any(map(file_format, _visible_files(data))) else folder


def _is_dataset_card(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) in (b"---\n", b"---\r")


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yields what is in a folder and its subfolders but for what is hidden; linked folders are entered, each once."""
    entered: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        entered.add(os.path.realpath(root))
        _refuse_table(Path(root))
        visible = [name for name in folders if not _is_hidden(name)]
        folders[:] = [name for name in visible if os.path.realpath(Path(root, name)) not in entered]
        yield from (Path(root, name) for name in files if not _is_hidden(name))


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(HIDDEN)


def _refuse_table(folder: Path) -> None:
    """Refuses a folder of which only a log knows which files count."""
    kind = None
    if (folder / "_delta_log").is_dir():
        kind = "Delta Lake"
    elif (folder / ".hoodie").is_dir():
        kind = "Hudi"
    elif (folder / "data").is_dir() and any(any((folder / "metadata").glob(name)) for name in ICEBERG_METADATA):
        kind = "Iceberg"
    if kind is not None:
        raise _table_error(str(folder), kind)


def _table_error(name: str, kind: str) -> InputError:
    found = f"a table of {kind}, whose files also hold rows that were deleted or replaced"
    return InputError(name, found=found, advice="export what it holds now, as Parquet say, and read that")


def _data_files(paths: Iterable[Path]) -> list[Path]:
    """Keeps the files of our formats.

    Raises:
        InputError: One is a broken link or no regular file: its rows would be missed silently.
    """
    known = [path for path in paths if is_data(path)]
    for path in known:
        if path.is_symlink() and not path.exists():
            raise broken_link(path)
        check_regular(path)
    return [path for path in known if path.is_file()]


def broken_link(path: Path) -> InputError:
    """Returns the error about a link to nothing."""
    return InputError(path, found="a link to a file that does not exist")


def split_at_magic(pattern: str) -> list[str]:
    """Returns the folder that a pattern's matches lie in, and the pattern's parts from its first wildcard on."""
    parts = Path(pattern).parts
    at = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return [str(Path(*parts[:at])), *parts[at:]]


def glob_root(pattern: str) -> Path:
    """Returns the folder that all matches of a pattern lie in."""
    return Path(split_at_magic(pattern)[0])


def no_data(name: str | Path, what: str) -> NoReturn:
    """Says that a place has no file of our formats.

    Args:
        name: What messages call the place.
        what: What it is, and a verb.

    Raises:
        InputError: Always.
    """
    raise InputError(name, found=f"{what} no file with one of {' '.join(SUFFIXES)}")
