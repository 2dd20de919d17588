"""A run's files are its owner's alone, whatever the umask, unless the user has made the folder; no link is followed."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import RunFolderError
from memvec.report import write_report
from tests.helpers.processes import arguments
from tests.helpers.refusals import refused
from tests.helpers.runs import random_vectors, write_run

TEXTS = ["tea", "coffee", "tea"]


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, set[str]]:
    """The modes of folders and of files below a folder, itself included."""
    found: dict[str, set[str]] = {"folders": set(), "files": set()}
    for path in (folder, *folder.rglob("*")):
        found["folders" if path.is_dir() else "files"].add(oct(stat.S_IMODE(path.stat().st_mode)))
    return found


PRIVATE = {"folders": {"0o700"}, "files": {"0o600"}}


def test_a_run_is_private_whatever_the_umask(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path, open_umask: None
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "profile=true", output="new/run")
    memvec.predict(cfg)
    memvec.load(cfg.output_dir)
    assert modes(tmp_path / "new") == PRIVATE


def test_an_unfinished_run_is_private_too(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path, open_umask: None
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memvec.run.stage.write_summary", _fail)
        with pytest.raises(KeyboardInterrupt):
            memvec.predict(cfg)
    assert (tmp_path / "run" / "journal" / "entries.arrow").exists()
    assert modes(tmp_path / "run") == PRIVATE


def _fail(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_the_user_has_made_keeps_its_mode(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path, open_umask: None
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o750)
    memvec.predict(tiny_config(write_jsonl(TEXTS)))
    assert modes(tmp_path / "run") == {"folders": {"0o750"}, "files": {"0o640"}}


@pytest.mark.processes
def test_the_command_line_makes_private_folders(llama: Path, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    command = arguments(write_jsonl(TEXTS), tmp_path / "unused", llama, "trainer.devices=1", "data.batch_size=1", "-m")
    command = [argument for argument in command if not argument.startswith("output_dir=")]  # the default one
    done = subprocess.run(command, cwd=tmp_path, umask=0, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/0/manifest.json"))) == 1
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/sweep.csv"))) == 1
    assert modes(tmp_path / "outputs") == PRIVATE


@pytest.mark.parametrize("name", ["logs", "vectors", "journal"])
def test_a_planted_link_to_a_folder_is_not_followed(
    name: str, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(elsewhere)
    found = re.compile(rf"^a link to .*elsewhere|^holds other files \({name}\)")
    with refused(RunFolderError, re.compile(rf"/run(/{name})?$"), found=found):
        memvec.predict(tiny_config(write_jsonl(TEXTS)))
    assert list(elsewhere.iterdir()) == []


def test_a_planted_link_to_a_log_is_not_followed(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "rank-00000.log").symlink_to(secret)
    with refused(RunFolderError, "logs/rank-00000.log", found=f"a link to {secret}, which memvec does not follow"):
        memvec.predict(tiny_config(write_jsonl(TEXTS)))
    assert secret.read_text() == "mine"


def test_what_is_written_into_a_finished_run_follows_no_link(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    folder = write_run(tmp_path / "sweep" / "0", random_vectors(8))
    secret = tmp_path / "secret"
    secret.write_text("mine")
    names = ["sweep.csv", "sweep.png", "report.html"]
    for name in names:
        (folder.root.parent / name).symlink_to(secret)
    (folder.root / "report.html").symlink_to(secret)
    write_report(folder.root.parent)
    write_report(folder.root)
    assert secret.read_text() == "mine"
    assert not any((folder.root.parent / name).is_symlink() for name in names)


def test_a_log_file_holds_one_line_a_record(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    path = write_jsonl([*TEXTS, "\x1b[2J"])
    forged = tmp_path / "a\x1b[2J\nmemvec all good.jsonl"
    path.rename(forged)
    cfg = tiny_config(path)
    cfg.data.path = str(forged)
    memvec.predict(cfg)
    log = (tmp_path / "run" / "logs" / "rank-00000.log").read_text()
    assert all(line.isprintable() for line in log.splitlines())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["data"]["path"] == str(forged)
