"""What happens to a run when something happens to it: real processes, really killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from omegaconf import DictConfig

import memvec
from memvec.errors import RunFolderError, WriterError
from memvec.run.folder import RunFolder
from memvec.writer.prediction_writer import VectorWriter
from tests.helpers.processes import (
    MANY,
    arguments,
    assert_same,
    children,
    finish,
    is_alive,
    journal_bytes,
    kill_group,
    random_texts,
    resume,
    rows_written,
    start,
    wait_until,
    wait_until_gone,
)
from tests.helpers.refusals import refused

pytestmark = pytest.mark.processes

TWO_RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
ONE_RANK = ("trainer.devices=1",)
SLOW = ("data.batch_size=4",)


def resumed(many: Path, output_dir: Path, llama: Path) -> Dataset:
    return memvec.load(resume(arguments(many, output_dir, llama)).folder.root)


@pytest.fixture(scope="module")
def killed(many: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process that was killed; tests work on copies of it."""
    output_dir = tmp_path_factory.mktemp("killed") / "run"
    kill_amid(many, output_dir, llama, ONE_RANK)
    return output_dir


def kill_amid(many: Path, output_dir: Path, llama: Path, ranks: tuple[str, ...]) -> None:
    process = start(arguments(many, output_dir, llama, *ranks, *SLOW))
    wait_until(lambda: journal_bytes(output_dir) > 100_000, process)
    assert process.poll() is None
    kill_group(process)


@pytest.mark.parametrize("ranks", [ONE_RANK, TWO_RANKS], ids=["1 rank", "2 ranks"])
def test_a_killed_run_goes_on_where_it_was(
    ranks: tuple[str, ...],
    killed: Path,
    many: Path,
    llama: Path,
    undisturbed: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output_dir = tmp_path / "run"
    if ranks == ONE_RANK:
        shutil.copytree(killed, output_dir)
    else:
        kill_amid(many, output_dir, llama, ranks)
    kept = rows_written(output_dir)
    assert 0 < kept < MANY

    with caplog.at_level("INFO", logger="memvec"):
        assert_same(resumed(many, output_dir, llama), undisturbed)

    assert f"resuming {output_dir}: {MANY - kept} vectors are left to compute" in caplog.text
    assert json.loads((output_dir / "metrics.json").read_text())["computed_entries"] == MANY - kept


@pytest.mark.parametrize("victim", ["the first rank", "the other rank"])
def test_the_job_ends_when_one_rank_is_killed(
    victim: str, many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    process = start(arguments(many, output_dir, llama, *TWO_RANKS, *SLOW))
    wait_until(lambda: len(list(output_dir.glob("journal/*.frames"))) == 2, process)
    wait_until(lambda: journal_bytes(output_dir) > 50_000, process)
    started = children(process)
    assert started
    os.kill(process.pid if victim == "the first rank" else started[0], signal.SIGKILL)

    code, said = finish(process, seconds=30)

    assert code != 0, said
    wait_until_gone(started)
    assert_same(resumed(many, output_dir, llama), undisturbed)


def test_input_that_changed_between_attempts_is_refused(killed: Path, many: Path, llama: Path, tmp_path: Path) -> None:
    path, output_dir = tmp_path / "input.jsonl", shutil.copytree(killed, tmp_path / "run")
    shutil.copy(many, path)
    with path.open("a") as stream:
        stream.write('{"id": "new", "text": "one more"}\n')
    with refused(RunFolderError, output_dir, found="holds a run of something else: input has other content"):
        resumed(path, output_dir, llama)


def test_weights_that_changed_between_attempts_are_refused(
    model_folders: Callable[[str], Path],
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(model_folders("llama"), tmp_path / "model")
    cfg = tiny_config(write_jsonl(["one", "two"]), model=folder)
    memvec.predict(cfg)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with refused(RunFolderError, found="model has other content"):
        memvec.predict(cfg)


def test_a_second_run_in_a_folder_at_work_is_refused(
    many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    first = start(arguments(many, output_dir, llama, *ONE_RANK, *SLOW))
    wait_until(lambda: journal_bytes(output_dir) > 50_000, first)
    first.send_signal(signal.SIGSTOP)
    with refused(RunFolderError, output_dir, found="another process is running in this folder"):
        resumed(many, output_dir, llama)
    first.send_signal(signal.SIGCONT)
    kill_group(first)
    # The dead process's lock is not in the way.
    assert_same(resumed(many, output_dir, llama), undisturbed)


@pytest.mark.parametrize(("kibibytes", "meanwhile"), [(100, "preparing"), (3000, "computing")])
def test_a_full_disk_is_one_line_and_loses_nothing_flushed(
    kibibytes: int, meanwhile: str, many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    """A limit on the size of a file: to the writer it is what a full disk is, an error of write()."""
    output_dir = tmp_path / "run"
    limited = ["bash", "-c", f'ulimit -f {kibibytes}; trap "" XFSZ; exec "$@"', "bash"]
    large_frames = (*ONE_RANK, *SLOW, "writer.flush_every=1")
    code, said = finish(start([*limited, *arguments(many, output_dir, llama, *large_frames)]))
    assert code == 1
    assert "Traceback" not in said
    assert "memvec: error: " in said
    assert "cannot be written: [Errno 27]" in said
    assert str(output_dir) in said
    assert (0 < rows_written(output_dir) < MANY) == (meanwhile == "computing")
    assert_same(resumed(many, output_dir, llama), undisturbed)


def test_a_folder_removed_under_a_run_ends_it_with_one_line(many: Path, llama: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    process = start(arguments(many, output_dir, llama, *ONE_RANK, *SLOW))
    wait_until(lambda: journal_bytes(output_dir) > 50_000, process)
    shutil.rmtree(output_dir)
    code, said = finish(process, seconds=60)
    assert code == 1
    assert "Traceback" not in said
    assert "was removed while the run was writing to it" in said


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(many: Path, llama: Path, tmp_path: Path) -> None:
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o500)
    as_somebody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    code, said = finish(start([*as_somebody, *arguments(many, parent / "run", llama, *ONE_RANK)]))
    assert code == 1
    assert "Traceback" not in said
    assert "memvec: error: " in said
    assert "Permission denied" in said


def test_an_error_in_the_writers_thread_ends_the_run(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread meets a file that has been closed under it, as a broken mount would have it."""
    before = set(threading.enumerate())
    original = VectorWriter.on_predict_start

    def break_file(self: VectorWriter, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        os.close(self._running().journal._descriptor)

    monkeypatch.setattr(VectorWriter, "on_predict_start", break_file)
    with refused(WriterError, found=re.compile("cannot be written: .*Bad file descriptor")):
        memvec.predict(tiny_config(write_jsonl(random_texts(200))))
    assert not [thread for thread in threading.enumerate() if thread not in before and "writer" in thread.name]


def test_a_dying_dataloader_worker_ends_the_run_with_one_line(
    many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    command = arguments(many, output_dir, llama, *ONE_RANK, *SLOW, "data.num_workers=1")
    process = start(command)
    wait_until(lambda: journal_bytes(output_dir) > 50_000, process)
    workers = [child for child in children(process) if is_alive(child)]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    code, said = finish(process, seconds=60)
    assert code == 1
    assert "Traceback" not in said
    assert "memvec: error: a process of this run ended: " in said
    assert_same(resumed(many, output_dir, llama), undisturbed)


def test_killed_while_finalising_a_run_finishes_the_next_time(
    many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    process = start(arguments(many, output_dir, llama, *ONE_RANK))
    wait_until((output_dir / "vectors").exists, process)
    kill_group(process)
    assert_same(resumed(many, output_dir, llama), undisturbed)
    # Everything was computed before: the numbers of the killed attempt are not this one's.
    assert json.loads((output_dir / "metrics.json").read_text())["computed_entries"] == 0
    assert sorted(path.name for path in output_dir.iterdir() if not path.name.startswith(".")) == [
        "history.json",
        "logs",
        "manifest.json",
        "metrics.json",
        "rejected.jsonl",
        "vectors",
    ]


def test_a_journal_left_behind_by_a_finished_run_is_removed(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    """Killed between the manifest and the end."""
    cfg = tiny_config(write_jsonl(["one", "two"]))
    memvec.predict(cfg)
    folder = RunFolder(cfg.output_dir)
    folder.journal.mkdir()
    (folder.journal / "entries.arrow").write_bytes(b"private")
    memvec.predict(cfg)
    assert not folder.journal.exists()
