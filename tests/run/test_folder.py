"""Whose a run's folder is: what may be resumed, and what is never written to."""

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
from tests.helpers.refusals import refused

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
def test_another_fingerprint_is_refused_naming_the_field(
    tmp_path: Path, finished: bool, changed: dict[str, Any], message: str
) -> None:
    folder = RunFolder(tmp_path)
    if finished:
        finish(folder)
    else:
        folder.claim(FINGERPRINT)
        folder.release()
    before = content(tmp_path)
    with refused(RunFolderError, tmp_path, found=f"holds a run of something else: {message}") as caught:
        RunFolder(tmp_path).claim(changed)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_without_resume_a_finished_run_is_refused(tmp_path: Path) -> None:
    finish(RunFolder(tmp_path))
    with refused(RunFolderError, tmp_path, found="holds a finished run and resume=false was given"):
        RunFolder(tmp_path).claim(FINGERPRINT, resume=False)


def test_without_resume_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(FINGERPRINT)
    folder.release()
    with refused(RunFolderError, tmp_path, found="holds an unfinished run and resume=false was given"):
        RunFolder(tmp_path).claim(FINGERPRINT, resume=False)


def test_without_resume_a_new_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new").claim(FINGERPRINT, resume=False) is RunState.NEW


@pytest.mark.parametrize("name", ["notes.txt", "vectors", "rejected.jsonl", "metrics.json"])
def test_a_folder_of_something_else_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "vectors" else (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with refused(
        RunFolderError, tmp_path, found=f"holds other files ({name})", advice="name an empty or new output_dir"
    ):
        RunFolder(tmp_path).claim(FINGERPRINT)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ['{"name": "my web app", "icons": []}', "[]", "not JSON"])
def test_a_manifest_of_something_else_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with refused(RunFolderError, tmp_path) as caught:
        RunFolder(tmp_path).claim(FINGERPRINT)
    assert str(caught.value).isprintable()
    assert content(tmp_path) == {"manifest.json": text.encode()}


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "2024.md").write_text("Dear diary")
    with refused(RunFolderError, tmp_path, found="holds other files (journal)"):
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
    with refused(RunFolderError, tmp_path, found="another process is running in this folder"):
        RunFolder(tmp_path).claim(FINGERPRINT)
    first.release()
    assert RunFolder(tmp_path).claim(FINGERPRINT) is RunState.UNFINISHED


@pytest.mark.processes
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
    with refused(RunFolderError, tmp_path, found="another process is running in this folder"):
        RunFolder(tmp_path).claim(FINGERPRINT)


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with refused(RunFolderError, "run", found="the run's folder cannot be used") as caught:
        RunFolder(tmp_path / "file" / "run").claim(FINGERPRINT)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_folders_place_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    with refused(RunFolderError, "run", found="the run's folder cannot be used"):
        RunFolder(tmp_path / "run").claim(FINGERPRINT)
    assert (tmp_path / "run").read_text() == "a file, not a folder"


WAITS = """
import json, subprocess, sys
from memvec.run.folder import RunFolder

def look(event, arguments):
    if event == "open" and str(arguments[0]).endswith("journal/lock") and not done:
        done.append(event)
        subprocess.run([sys.executable, "-c", sys.argv[3], *sys.argv[1:3]], check=True)

done = []
sys.addaudithook(look)
folder = RunFolder(sys.argv[1])
try:
    print(folder.claim(json.loads(sys.argv[2])).value)
except Exception as error:
    print(type(error).__name__, error)
folder.release()
"""
FINISHES = """
import json, sys
from memvec.files import write_json
from memvec.run.folder import RunFolder

folder = RunFolder(sys.argv[1])
folder.claim(json.loads(sys.argv[2]))
folder.vectors.mkdir()
write_json(folder.manifest, {"fingerprint": json.loads(sys.argv[2])})
folder.release(remove_journal=True)
"""
STARTS = """
import json, os, sys
from memvec.run.folder import RunFolder

RunFolder(sys.argv[1]).claim(json.loads(sys.argv[2]))
os._exit(0)
"""
GIVES_UP = """
import json, sys
from memvec.run.folder import RunFolder

folder = RunFolder(sys.argv[1])
folder.claim(json.loads(sys.argv[2]))
folder.release(remove_journal=True)
"""


def claim_while(root: Path, other: str) -> str:
    """Returns what a process finds that has looked at the folder just before another process does something there."""
    command = [sys.executable, "-c", WAITS, str(root), json.dumps(FINGERPRINT), other]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.processes
@pytest.mark.parametrize("unfinished", [True, False])
def test_a_run_that_another_process_finishes_is_finished(unfinished: bool, tmp_path: Path) -> None:
    """Between the first look and the lock."""
    if unfinished:
        folder = RunFolder(tmp_path)
        folder.claim(FINGERPRINT)
        folder.release()
    assert claim_while(tmp_path, FINISHES) == "finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "vectors"]


@pytest.mark.processes
@pytest.mark.parametrize(("other", "found"), [(STARTS, "unfinished"), (GIVES_UP, "new")])
def test_what_another_process_does_meanwhile_is_found(other: str, found: str, tmp_path: Path) -> None:
    """The lock that counts is on the file that has its name now."""
    assert claim_while(tmp_path / "run", other) == found
    assert read_json(RunFolder(tmp_path / "run").fingerprint) == FINGERPRINT


@pytest.mark.processes
def test_one_of_two_that_start_at_once_has_the_folder(tmp_path: Path) -> None:
    """Many times, since it is a matter of microseconds."""
    script = (
        "import json, sys; from memvec.run.folder import RunFolder\n"
        "for line in sys.stdin:\n"
        "    folder = RunFolder(line.strip())\n"
        "    try:\n"
        "        folder.claim(json.loads(sys.argv[1])); print('mine', flush=True)\n"
        "        sys.stdin.readline(); folder.release(remove_journal=True)\n"
        "    except Exception as error:\n"
        "        print(error, flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script, json.dumps(FINGERPRINT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes, text=True) for _ in range(2)]
    for number in range(100):
        for process in processes:
            process.stdin.write(f"{tmp_path / str(number)}\n")
        for process in processes:
            process.stdin.flush()
        said = sorted(process.stdout.readline().strip() for process in processes)
        assert said[0].endswith(": another process is running in this folder"), said
        assert said[1] == "mine", said
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_the_journal_is_removed_while_it_is_locked(tmp_path: Path) -> None:
    """A process that comes then never loses a journal that it has begun."""
    first = RunFolder(tmp_path)
    first.claim(FINGERPRINT)
    second = RunFolder(tmp_path)
    with refused(RunFolderError, tmp_path, found="another process is running"):
        second.claim(FINGERPRINT)
    first.release(remove_journal=True)
    assert second.claim(FINGERPRINT) is RunState.NEW
    first.release(remove_journal=False)
    assert read_json(second.fingerprint) == FINGERPRINT


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "\x00" * 40])
def test_a_damaged_fingerprint_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(FINGERPRINT)
    folder.release()
    folder.fingerprint.write_text(text)
    with refused(RunFolderError, "fingerprint.json", found="is damaged") as caught:
        RunFolder(tmp_path).claim(FINGERPRINT)
    assert "\n" not in str(caught.value)
    assert folder.fingerprint.read_text() == text
