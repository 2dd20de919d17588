"""One test of each kind that the lane `processes` has many of: a command line, two ranks, SIGTERM, a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from datasets import Dataset

import memvec
from memvec.files import read_json
from tests.helpers.processes import (
    arguments,
    assert_same,
    finish,
    journal_bytes,
    kill_group,
    resume,
    slurm_tasks,
    start,
    wait_until,
    write_texts,
)

ROWS = 800
# A run of many seconds, of which a part is flushed soon; what is left of it is computed in larger batches.
SLOW = ("data.batch_size=1", "writer.flush_every=20")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("smoke") / "texts.jsonl", ROWS)


@pytest.fixture(scope="module")
def undisturbed(data: Path, llama: Path) -> Dataset:
    resume(arguments(data, data.parent / "undisturbed", llama))
    return memvec.load(data.parent / "undisturbed")


def test_two_ranks_give_what_one_process_gives(data: Path, llama: Path, undisturbed: Dataset, tmp_path: Path) -> None:
    command = arguments(data, tmp_path / "run", llama, "trainer.strategy=ddp", "trainer.devices=2")
    (code, said), (other_code, _) = map(finish, slurm_tasks(command, tasks=2, nodes=1))
    assert (code, other_code) == (0, 0), said
    assert f"vectors    {tmp_path / 'run' / 'vectors'}" in said
    assert read_json(tmp_path / "run" / "metrics.json")["ranks"] == 2
    assert_same(memvec.load(tmp_path / "run"), undisturbed)


def test_a_wrong_command_is_one_line(data: Path, llama: Path, tmp_path: Path) -> None:
    code, said = finish(start(arguments(data, tmp_path / "run", llama, "data.batchsize=3")))
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("memvec: error: data.batchsize: no such override; did you mean data.batch_size?")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_resumes(
    number: signal.Signals, data: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    command = arguments(data, tmp_path / "run", llama, "trainer.devices=1")
    process = start([*command, *SLOW])
    wait_until(lambda: journal_bytes(tmp_path / "run") > 0, process)
    if number == signal.SIGKILL:
        kill_group(process)
    else:
        process.send_signal(number)
        code, said = finish(process)
        assert code == 128 + number, said
        assert "stopped by SIGTERM; what was computed is kept" in said
    assert 0 < resume(command).metrics["computed_entries"] < ROWS
    assert_same(memvec.load(tmp_path / "run"), undisturbed)
