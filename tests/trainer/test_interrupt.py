"""Ctrl-C and SIGTERM: real processes, one, two by Lightning's launchers, two by torchrun or SLURM, really signalled."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from datasets import Dataset
from omegaconf import DictConfig

import memvec
from memvec.errors import Interrupted
from memvec.model.module import HiddenStateModule
from tests.fixtures import TEXTS
from tests.helpers.processes import (
    SLOWNESS,
    Process,
    arguments,
    assert_same,
    children,
    finish,
    is_alive,
    resume,
    rows_of_files,
    slurm_tasks,
    start,
    torchrun,
    wait_until,
    wait_until_gone,
)
from tests.helpers.refusals import refused

pytestmark = pytest.mark.processes

# One row a batch, so that a rank's batches are its rows; and frames so large that the last one is hardly ever full.
SLOW = ("data.batch_size=1", "writer.flush_every=200")
ONE_RANK = ("trainer.devices=1",)
TWO_RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
TWO_SPAWNED_RANKS = ("trainer.devices=2", "trainer.strategy=ddp_spawn")
TWO_SHARING_RANKS = ("trainer=fsdp", "trainer.devices=2")
ADVICE = "memvec: finishing the batch in hand; a second signal stops at once"


def wait_until_computing(output_dir: Path, process: Process, *, ranks: int) -> None:
    """Waits until every rank has begun, and has written a frame or had the time for it."""

    def sizes() -> list[int]:
        return [path.stat().st_size for path in output_dir.glob("journal/*.frames")]

    wait_until(lambda: len(sizes()) == ranks, process)
    latest = time.monotonic() + 2 * SLOWNESS
    wait_until(lambda: all(sizes()) or time.monotonic() > latest, process)
    assert process.poll() is None, finish(process)


def send(processes: Sequence[int], number: int) -> None:
    for process in processes:
        if is_alive(process):
            os.kill(process, number)


def assert_all_is_flushed(output_dir: Path, *, ranks: int) -> None:
    """Asserts that what every rank that was stopped says it has computed is in its journal, and that not all were done.

    On a busy machine a rank may have begun so much earlier than another that it was done before the signal came.
    """
    written = rows_of_files(output_dir)
    assert len(written) == ranks
    stopped = 0
    for name, rows in written.items():
        log = (output_dir / "logs" / f"{name[: len('rank-00000')]}.log").read_text()
        for batches in re.findall("stopping after ([0-9]+) batch", log):
            assert int(batches) == rows
            stopped += 1
    assert 0 < stopped <= ranks
    assert sum(written.values()) > 0
    assert not (output_dir / "manifest.json").exists()


@pytest.mark.parametrize(
    ("overrides", "number", "code"),
    [
        pytest.param(ONE_RANK, signal.SIGTERM, 143, id="1 rank, SIGTERM"),
        pytest.param(ONE_RANK, signal.SIGINT, 130, id="1 rank, Ctrl-C"),
        pytest.param(TWO_RANKS, signal.SIGTERM, 143, id="2 ranks, SIGTERM"),
        pytest.param(TWO_RANKS, signal.SIGINT, 130, id="2 ranks, Ctrl-C"),
        pytest.param(TWO_SPAWNED_RANKS, signal.SIGTERM, 143, id="2 spawned ranks, SIGTERM"),
        pytest.param(TWO_SHARING_RANKS, signal.SIGINT, 130, id="2 ranks that share the weights, Ctrl-C"),
    ],
)
def test_a_signal_flushes_and_sets_the_exit_code(
    overrides: tuple[str, ...], number: int, code: int, many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    output_dir, ranks = tmp_path / "run", 1 if overrides is ONE_RANK else 2
    command = arguments(many, output_dir, llama, *overrides)
    process = start([*command, *SLOW])
    wait_until_computing(output_dir, process, ranks=ranks)
    started = children(process)
    if number == signal.SIGINT:  # a terminal sends it to every process of the group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)

    ended_with, said = finish(process, seconds=30)

    assert ended_with == code, said
    assert "Traceback" not in said
    assert said.count(ADVICE) == said.count("stopped by") == 1
    assert f"memvec: stopped by {signal.Signals(number).name}; what was computed is kept" in said
    assert f"output_dir={output_dir} resumes the run" in said
    wait_until_gone(started)
    assert_all_is_flushed(output_dir, ranks=ranks)
    if overrides is TWO_RANKS and number == signal.SIGINT:
        code, said = finish(start(command))  # it is the same command that resumes
        assert code == 0, said
    else:
        resume(command)
    assert_same(memvec.load(output_dir), undisturbed)


def test_a_second_ctrl_c_ends_at_once(many: Path, llama: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    process = start(arguments(many, output_dir, llama, *TWO_RANKS, *SLOW))
    wait_until_computing(output_dir, process, ranks=2)
    started = children(process)
    process.send_signal(signal.SIGSTOP)  # both are waiting when it wakes up: no batch comes between them
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    code, said = finish(process, seconds=10)
    assert code in (130, 143), said
    assert "stopped by" not in said
    wait_until_gone(started)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_sweep_flushes_the_job_and_starts_no_other(
    number: int, many: Path, llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    command = arguments(many, folder, llama, *ONE_RANK, "writer.flush_every=200", "data.batch_size=1,2")
    process = start([*command[:3], "-m", *command[3:]])
    wait_until_computing(folder / "0", process, ranks=1)
    started = children(process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code, said = finish(process, seconds=30)
    assert code == 128 + number, said
    assert "Traceback" not in said
    assert f"memvec: stopped by {signal.Signals(number).name}; what was computed is kept" in said
    wait_until_gone(started)
    assert_all_is_flushed(folder / "0", ranks=1)
    assert not (folder / "1").exists()


@pytest.mark.parametrize(("launcher", "number"), [("torchrun", signal.SIGINT), ("SLURM", signal.SIGTERM)])
def test_a_signal_that_comes_twice_loses_nothing(
    launcher: str, number: int, many: Path, llama: Path, undisturbed: Dataset, tmp_path: Path
) -> None:
    """From the terminal or the scheduler, and from what started the ranks; here it comes until they have ended."""
    output_dir = tmp_path / "run"
    command = arguments(many, output_dir, llama, *TWO_RANKS)
    if launcher == "torchrun":
        processes = [start(torchrun([*command, *SLOW], 2))]
    else:
        processes = slurm_tasks([*command, *SLOW], tasks=2, nodes=1)
    wait_until_computing(output_dir, processes[0], ranks=2)
    ranks = children(processes[0]) if launcher == "torchrun" else [process.pid for process in processes]
    assert len(ranks) == 2
    while any(is_alive(rank) for rank in ranks):
        send(ranks, number)
        time.sleep(0.01)
    ended = [finish(process, seconds=60) for process in processes]

    said = "".join(text for _, text in ended)
    if launcher == "SLURM":
        assert [code for code, _ in ended] == [128 + number] * 2
    else:
        assert re.findall(r"exitcode *: (\S+) \(pid", said) == [str(128 + number)] * 2
    assert ADVICE not in said
    assert re.findall("^memvec: .*stopped by.*", said, re.MULTILINE) == re.findall(
        f"^memvec: stopped by {signal.Signals(number).name}; what was computed is kept.*", said, re.MULTILINE
    )
    assert said.count("memvec: stopped by") == 1
    assert_all_is_flushed(output_dir, ranks=2)
    resume(command)
    assert_same(memvec.load(output_dir), undisturbed)


def test_a_signal_behind_the_last_batch_ends_the_run_too(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS))

    def interrupt(module: HiddenStateModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(HiddenStateModule, "on_predict_epoch_end", interrupt)
        advice = f"the same command with output_dir={cfg.output_dir} resumes the run"
        with refused(Interrupted, found="stopped by SIGTERM", advice=advice):
            memvec.predict(cfg)
    assert memvec.predict(cfg).metrics["computed_entries"] == 0  # all was flushed
