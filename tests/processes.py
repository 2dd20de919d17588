"""Starts memvec as a user does, in a process of its own, and waits for it to get somewhere before it is disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

import memvec
from memvec.run import RunFolder
from memvec.summary import RunSummary
from memvec.writer.journal import read_journal

SECONDS_TO_START = 120
MANY = 5_000
WORDS = "she likes tea coffee moved to Lisbon works at the bank bakery cat dog 喜欢 喝茶 上海 周末 in 2021".split()  # noqa: SIM905


def random_texts(rows: int) -> list[str]:
    """Returns different texts of 3 to 21 words, the same at every call."""
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(2, 20))) + f" {row}" for row in range(rows)]


def write_texts(path: Path, rows: int) -> Path:
    """Writes random texts with ids as JSON lines."""
    with path.open("w", encoding="utf-8") as stream:
        for row, text in enumerate(random_texts(rows)):
            stream.write(json.dumps({"id": f"m/{row}", "text": text}) + "\n")
    return path


def arguments(data_path: Path, output_dir: Path, model: Path, *overrides: str) -> list[str]:
    """Returns a command line that runs a tiny model quietly on the CPU."""
    return [
        sys.executable, "-m", "memvec.predict", f"data.path={data_path}", f"output_dir={output_dir}", "model=hub",
        f"model.name_or_path={model}", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", *overrides,
    ]  # fmt: skip


def resume(command: Sequence[str]) -> RunSummary:
    """Goes on, in this process and over one rank, with the run that a command line has begun; that is quicker."""
    own = ("trainer.devices=", "trainer.strategy=", "trainer=")
    overrides = [argument for argument in command if "=" in argument and not argument.startswith(own)]
    return memvec.predict(memvec.compose([*overrides, "trainer.devices=1"]))


def start(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, folder: Path | None = None
) -> subprocess.Popen[str]:
    """Starts a process in a process group of its own, its output in pipes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env=environment, start_new_session=True, cwd=folder)


def torchrun(command: Sequence[str], processes: int) -> list[str]:
    """Returns the command line with which torchrun starts so many processes of `python -m …`."""
    python, *rest = command
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *rest]


def slurm_tasks(command: Sequence[str], *, tasks: int, nodes: int) -> list[subprocess.Popen[str]]:
    """Starts the tasks of a job with the environment that `srun` gives them, all on this machine."""
    each = tasks // nodes
    job = {
        "SLURM_JOB_ID": str(random.randrange(10_000, 60_000)),
        "SLURM_JOB_NAME": "memvec",
        "SLURM_NODELIST": "127.0.0.1",
    }
    size = {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": each, "SLURM_NNODES": nodes}
    started = []
    for task in range(tasks):
        place = {"SLURM_PROCID": task, "SLURM_LOCALID": task % each, "SLURM_NODEID": task // each}
        environment = {**job, **{name: str(value) for name, value in {**size, **place}.items()}}
        started.append(start(command, environment))
    return started


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Waits for a process and returns its exit code and all it said; one that hangs is killed and fails the test."""
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    return process.returncode, stdout + stderr


def run_from_one(
    commands: Mapping[str, Sequence[str]], scratch: Path, *, folder: Path | None = None
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Runs commands, `["memvec.predict", …]`, one after another in processes that one process forks (quicker).

    Args:
        commands: By their names.
        scratch: An empty folder.
        folder: Where they run.
    """
    (scratch / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    script = Path(__file__).with_name("several_commands.py")
    code, said = finish(start([sys.executable, str(script), str(scratch / "commands.json")], folder=folder))
    assert code == 0, said
    codes = json.loads((scratch / "codes.json").read_text(encoding="utf-8"))
    done = {}
    for name, command in commands.items():
        out, err = ((scratch / f"{name}{suffix}").read_text(encoding="utf-8") for suffix in (".out", ".err"))
        done[name] = subprocess.CompletedProcess(command, codes[name], out, err)
    return done


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills a process and all it started, as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()  # closes the pipes


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for a condition, or for the process to end."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the process did not get that far"
        time.sleep(0.02)


def journal_bytes(output_dir: Path) -> int:
    """Returns how many bytes of frames there are."""
    return sum(path.stat().st_size for path in output_dir.glob("journal/*.frames") if path.exists())


def rows_written(output_dir: Path) -> int:
    """Returns how many vectors the journal holds, counted as often as they were written."""
    folder = RunFolder(output_dir)
    if not folder.first_rows.exists():
        return 0
    rows = len(np.load(folder.first_rows))
    alone = 0
    for path in folder.journal.glob("*.frames"):
        one = RunFolder(output_dir).journal / f"only-{path.name}"
        one.mkdir(exist_ok=True)
        (one / path.name).symlink_to(path)
        alone += int(read_journal(one, rows=rows).has_vector.sum())
        (one / path.name).unlink()
        one.rmdir()
    return alone


def children(process: subprocess.Popen[str]) -> list[int]:
    """Returns the process numbers of the ranks that a process has started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def is_alive(number: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(numbers: Sequence[int]) -> None:
    """Waits for processes to end, and fails where one does not."""
    deadline = time.monotonic() + 30
    while any(is_alive(number) for number in numbers):
        assert time.monotonic() < deadline, "a process that was started is still there"
        time.sleep(0.1)


def assert_same(dataset: Dataset, expected: Dataset, *, error: float = 1e-5) -> None:
    """Asserts the same ids in the same order, and vectors within a relative error."""
    assert list(dataset["id"][:]) == list(expected["id"][:])
    vectors, reference = dataset["vector"][:], expected["vector"][:]
    assert float(((vectors - reference).norm(dim=1) / reference.norm(dim=1)).max()) < error
