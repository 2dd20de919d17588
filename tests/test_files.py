"""Files appear whole or not at all, whatever interrupts the writer."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvec.errors import RunFolderError
from memvec.files import (
    MOST_BYTES,
    atomic_file,
    create_file,
    make_folder,
    make_root,
    read_json,
    read_json_lines,
    sync_folder,
    write_json,
)
from tests.helpers.refusals import refused

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(content=JSON)
def test_json_comes_back_as_it_was_written(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, content)
    assert read_json(path) == content


def test_a_path_that_is_not_unicode_comes_back_as_it_was(tmp_path: Path) -> None:
    name = os.fsdecode(b"memories-\xff.jsonl")
    write_json(tmp_path / "a.json", {"path": name, name: "爱喝茶"})
    assert read_json(tmp_path / "a.json") == {"path": name, name: "爱喝茶"}


def test_json_keeps_chinese_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "爱喝茶"})
    assert "爱喝茶" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_file_has_its_name_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename across file systems would be a copy
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_while_writing_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_content_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.processes
def test_a_killed_writer_leaves_the_old_file_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path; from memvec.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left = [file for file in tmp_path.iterdir() if file != path]
    assert all(file.name.endswith(".partial") for file in left)

    with atomic_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def test_syncing_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o700, 0o600), (0o750, 0o640), (0o777, 0o666)])
def test_a_file_is_as_private_as_its_folder(folder_mode: int, file_mode: int, tmp_path: Path, open_umask: None) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(folder_mode)
    write_json(folder / "a.json", 1)
    make_folder(folder / "inner")
    os.close(create_file(folder / "b.log", os.O_APPEND))
    assert [mode_of(folder / name) for name in ("a.json", "b.log", "inner")] == [file_mode, file_mode, folder_mode]


def test_a_new_root_is_its_owners_alone_and_an_old_one_is_left(tmp_path: Path, open_umask: None) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    for name in ("new/run", "old", "old/run"):
        make_root(tmp_path / name)
    assert [mode_of(tmp_path / name) for name in ("new", "new/run", "old", "old/run")] == [0o700, 0o700, 0o755, 0o700]


def test_no_planted_link_is_followed(tmp_path: Path) -> None:
    secret, elsewhere = tmp_path / "secret", tmp_path / "elsewhere"
    secret.write_text("mine")
    elsewhere.mkdir()
    (tmp_path / "logs").symlink_to(elsewhere)
    (tmp_path / "a.log").symlink_to(secret)
    (tmp_path / "a.json").symlink_to(secret)
    with refused(RunFolderError, "logs", found=re.compile(r"a link to .*elsewhere, which memvec does not follow")):
        make_folder(tmp_path / "logs")
    with refused(RunFolderError, "a.log", found=re.compile(r"a link to .*secret, which memvec does not follow")):
        create_file(tmp_path / "a.log", os.O_APPEND)
    write_json(tmp_path / "a.json", 1)  # the link itself is replaced
    assert (secret.read_text(), list(elsewhere.iterdir()), read_json(tmp_path / "a.json")) == ("mine", [], 1)


def test_threads_that_write_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: write_json(path, [n] * 20_000), range(20)))
    content = read_json(path)
    assert len(content) == 20_000
    assert len(set(content)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 1_000_000, "recursion"),
        (b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
        (b"9" * 5_000, "4300 digits"),
        (b" " * (MOST_BYTES + 1), "larger than 32 MiB"),
    ],
)
def test_what_is_no_json_of_memvecs_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with refused(RunFolderError, path, found=re.compile(f"^damaged, or not of memvec: .*{said}")) as caught:
        read_json(path)
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_said_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name, said in (("pipe", "not a regular file"), ("zero", "not a regular file"), ("folder", "cannot be read")):
        with refused(RunFolderError, f"{name}.json", found=re.compile(f"{said}|directory")):
            read_json(tmp_path / f"{name}.json")
    with refused(RunFolderError, "none.json", found="cannot be read: No such file"):
        read_json(tmp_path / "none.json")


def test_of_json_lines_only_the_first_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nnot JSON\n')
    assert read_json_lines(path, most=2) == [{"a": 1}, {"a": 2}]
    with refused(RunFolderError, "a.jsonl", found="damaged"):
        read_json_lines(path, most=3)
