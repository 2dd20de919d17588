"""Whose a run's folder is: what may be gone on with, and what is never written to."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memvec.errors import RunFolderError
from memvec.files import read_json, write_json
from memvec.run.folder import RunFolder, RunState

FINGERPRINT: dict[str, Any] = {"input": ["abc"], "template": "{text}", "layer": -1}


def finish(folder: RunFolder, fingerprint: dict[str, Any] = FINGERPRINT) -> None:
    """Leaves what a finished run leaves."""
    folder.vectors.mkdir(parents=True)
    write_json(folder.manifest, {"fingerprint": fingerprint})


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_new_folder_is_taken_and_signed(tmp_path: Path, exists: bool) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    if exists:
        folder.root.mkdir(parents=True)
    assert folder.claim(FINGERPRINT) is RunState.NEW
    assert read_json(folder.fingerprint) == FINGERPRINT
    assert not folder.is_finished


def test_the_same_run_may_go_on(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.claim(FINGERPRINT)
    first.release()
    assert RunFolder(tmp_path).claim(dict(FINGERPRINT)) is RunState.UNFINISHED


def test_a_finished_run_is_found_finished_and_left_as_it_is(tmp_path: Path) -> None:
    finish(RunFolder(tmp_path))
    before = content(tmp_path)
    assert RunFolder(tmp_path).claim(FINGERPRINT) is RunState.FINISHED
    assert content(tmp_path) == before


def test_paths_are_absolute_and_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert RunFolder("runs/a").root == tmp_path / "runs" / "a"
    assert RunFolder("~/a").root == tmp_path / "home" / "a"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({**FINGERPRINT, "layer": 3}, "layer was -1, is 3"),
        ({**FINGERPRINT, "template": "a{text}"}, "template was '{text}', is 'a{text}'"),
        ({**FINGERPRINT, "dtype": "float32"}, "dtype was None, is 'float32'"),
    ],
)
def test_another_fingerprint_is_refused_naming_the_field_the_old_and_the_new(
    tmp_path: Path, finished: bool, changed: dict[str, Any], message: str
) -> None:
    folder = RunFolder(tmp_path)
    if finished:
        finish(folder)
    else:
        folder.claim(FINGERPRINT)
        folder.release()
    before = content(tmp_path)
    with pytest.raises(RunFolderError, match="holds a run of something else") as caught:
        RunFolder(tmp_path).claim(changed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_without_resume_a_finished_run_is_refused(tmp_path: Path) -> None:
    finish(RunFolder(tmp_path))
    with pytest.raises(RunFolderError, match="holds a finished run and resume=false was given"):
        RunFolder(tmp_path).claim(FINGERPRINT, resume=False)


def test_without_resume_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(FINGERPRINT)
    folder.release()
    with pytest.raises(RunFolderError, match="holds an unfinished run and resume=false was given"):
        RunFolder(tmp_path).claim(FINGERPRINT, resume=False)


def test_without_resume_a_new_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new").claim(FINGERPRINT, resume=False) is RunState.NEW


@pytest.mark.parametrize("name", ["notes.txt", "vectors", "rejected.jsonl", "metrics.json"])
def test_a_folder_of_something_else_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "vectors" else (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match=rf"holds other files \({name}\); name an empty or new output_dir"):
        RunFolder(tmp_path).claim(FINGERPRINT)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ['{"name": "my web app", "icons": []}', "[]", "not JSON"])
def test_a_manifest_of_something_else_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path).claim(FINGERPRINT)
    assert content(tmp_path) == {"manifest.json": text.encode()}


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "2024.md").write_text("Dear diary")
    with pytest.raises(RunFolderError, match=r"holds other files \(journal\)"):
        RunFolder(tmp_path).claim(FINGERPRINT)


@pytest.mark.parametrize("name", [".hydra", "logs", ".DS_Store"])
def test_what_hydra_or_a_desktop_leaves_does_not_hinder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert RunFolder(tmp_path).claim(FINGERPRINT) is RunState.NEW


def test_a_run_killed_before_it_signed_is_new_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    (journal / "lock").touch()
    (journal / ".fingerprint.json.4711.partial").write_text('{"inp')
    assert RunFolder(tmp_path).claim(FINGERPRINT) is RunState.NEW
    assert read_json(RunFolder(tmp_path).fingerprint) == FINGERPRINT


def test_two_processes_cannot_run_in_one_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.claim(FINGERPRINT)
    with pytest.raises(RunFolderError, match="another process is running in this folder"):
        RunFolder(tmp_path).claim(FINGERPRINT)
    first.release()
    assert RunFolder(tmp_path).claim(FINGERPRINT) is RunState.UNFINISHED


def test_a_process_that_was_killed_does_not_keep_the_folder(tmp_path: Path) -> None:
    script = (
        "import json, os, signal, sys; from memvec.run.folder import RunFolder\n"
        "print(RunFolder(sys.argv[1]).claim(json.loads(sys.argv[2])).value, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(FINGERPRINT)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.stdout.strip() == "new"
    assert RunFolder(tmp_path).claim(FINGERPRINT) is RunState.UNFINISHED


def test_releasing_with_the_journal_leaves_only_the_result(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(FINGERPRINT)
    finish(folder)
    folder.release(remove_journal=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "vectors"]


def test_a_spawned_rank_gets_the_paths_and_not_the_claim(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(FINGERPRINT)
    copy = pickle.loads(pickle.dumps(folder))
    assert (copy.root, copy.journal, copy.vectors) == (folder.root, folder.journal, folder.vectors)
    copy.release()
    with pytest.raises(RunFolderError, match="another process is running in this folder"):
        RunFolder(tmp_path).claim(FINGERPRINT)


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(RunFolderError, match="the run's folder cannot be used") as caught:
        RunFolder(tmp_path / "file" / "run").claim(FINGERPRINT)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_folders_place_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    with pytest.raises(RunFolderError, match="the run's folder cannot be used"):
        RunFolder(tmp_path / "run").claim(FINGERPRINT)
    assert (tmp_path / "run").read_text() == "a file, not a folder"
