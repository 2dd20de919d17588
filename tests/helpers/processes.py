"""Starts memvec as a user does, in a process of its own, and waits for it to get somewhere before it is disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import psutil
from datasets import Dataset

import memvec
from memvec.data.prepared import read_signature
from memvec.run.folder import RunFolder
from memvec.run.summary import RunSummary
from memvec.writer.vectors import read_journal
from tests.helpers.configs import compose

# Limits hold where this process took so long to import its libraries; on a slower machine they are longer.
SECONDS_TO_IMPORT = 8
LOADED = time.time() - psutil.Process().create_time()
SLOWNESS = max(1.0, LOADED / SECONDS_TO_IMPORT)
SECONDS_TO_START = 120 * SLOWNESS
SECONDS_TO_END = 240
FORKED = ("memvec.", "tests.helpers.")  # modules that the fork server becomes
ONE_REQUEST = threading.Lock()  # some tests start processes in threads
MANY = 8_000
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
    return memvec.predict(compose([*overrides, "trainer.devices=1"]))


class Forked:
    """A process that the fork server has started, with the methods of `subprocess.Popen` that tests use.

    Args:
        command: What it runs.
        pid: Its number.
        output: The folder with what it says.
    """

    def __init__(self, command: Sequence[str], pid: int, output: Path) -> None:
        self.args, self.pid, self.output = command, pid, output

    @property
    def returncode(self) -> int | None:
        code = self.output / "code"
        return int(code.read_text()) if code.exists() else None

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = SECONDS_TO_END * SLOWNESS) -> tuple[str, str]:
        """Waits for it and for all that it has started, as a pipe does."""
        deadline = time.monotonic() + timeout
        while self.returncode is None or is_session_alive(self.pid):
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            time.sleep(0.02)
        return (self.output / "out").read_text(), (self.output / "err").read_text()


Process = subprocess.Popen[str] | Forked


@cache
def fork_server() -> tuple[subprocess.Popen[bytes], Path]:
    """Starts the fork server (it ends with this process), and makes a folder for what its processes say."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "tests.helpers.fork_server",
    ]  # `-m`: of this folder's memvec, as what is started here
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)
    return server, Path(tempfile.mkdtemp(prefix="memvec-tests-"))


def stop_fork_server() -> None:
    if fork_server.cache_info().currsize:
        server, folder = fork_server()
        server.communicate()
        shutil.rmtree(folder)


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    fresh: bool = False,
) -> Process:
    """Starts a command in a session of its own and keeps what it says.

    Args:
        command: A command line.
        environment: What its environment has besides this process's; what libraries read as they are imported wants
            `fresh`.
        folder: Where it runs.
        fresh: Whether a command of memvec is started as a user does, and not by the fork server, which is quicker.
    """
    all_variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
    if fresh or command[:2] != [sys.executable, "-m"] or not command[2].startswith(FORKED):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, env=all_variables, start_new_session=True, cwd=folder)
    with ONE_REQUEST:
        server, scratch = fork_server()
        assert server.stdin is not None
        assert server.stdout is not None
        output = Path(tempfile.mkdtemp(dir=scratch))
        where = {"folder": str(folder or Path.cwd()), "output": str(output)}
        request = {"command": command[2:], "environment": all_variables, **where}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        return Forked(command, int(server.stdout.readline()), output)


def flow(name: str, overrides: Sequence[str]) -> list[str]:
    """Returns the command line of one of memvec's flows."""
    return [sys.executable, "-m", f"memvec.{name}", *overrides]


def start_disturbed(
    name: str, overrides: Sequence[str], *, at: str, do: str = "kill", event: str = "os.rename"
) -> Process:
    """Starts a flow to which `tests.helpers.at_rename` does something at the moment before a file takes its name."""
    variables = {"RUN": name, "AT": at, "DO": do, "EVENT": event}
    return start([sys.executable, "-m", "tests.helpers.at_rename", *overrides], variables)


def torchrun(command: Sequence[str], processes: int) -> list[str]:
    """Returns the command line with which torchrun starts so many processes of `python -m …`."""
    python, *rest = command
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *rest]


def slurm_tasks(command: Sequence[str], *, tasks: int, nodes: int) -> list[Process]:
    """Starts the tasks of a job with the environment that `srun` gives them, all on this machine."""
    each = tasks // nodes
    job = {
        "SLURM_JOB_ID": "12345",
        "MASTER_PORT": str(free_port()),
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


def finish(process: Process, seconds: float = SECONDS_TO_END) -> tuple[int, str]:
    """Waits for a process and returns its exit code and all it said; one that hangs is killed and fails the test.

    Args:
        process: What to wait for.
        seconds: How long, on a machine that is not slow.
    """
    try:
        stdout, stderr = process.communicate(timeout=seconds * SLOWNESS)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    return process.returncode, stdout + stderr


def kill_group(process: Process) -> None:
    """Kills a process and all it started, as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()  # closes the pipes


def free_port() -> int:
    """Returns a port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], process: Process) -> None:
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
    return sum(rows_of_files(output_dir).values())


def rows_of_files(output_dir: Path) -> dict[str, int]:
    """Returns how many vectors each file of the journal holds, by its name."""
    folder = RunFolder(output_dir)
    if not folder.first_rows.exists():
        return {}
    rows = len(np.load(folder.first_rows))
    alone = {}
    for path in folder.journal.glob("*.frames"):
        with tempfile.TemporaryDirectory() as one:  # not within the journal, which the run may be reading
            (Path(one) / path.name).symlink_to(path.absolute())
            found = read_journal(Path(one), rows=rows, signature=read_signature(folder))
        alone[path.name] = int(found.has_vector.sum())
    return alone


def children(process: Process) -> list[int]:
    """Returns the process numbers of the ranks that a process has started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def is_session_alive(number: int) -> bool:
    """Whether a process of a session runs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == number and state != "Z":
                return True
    return False


def is_alive(number: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(numbers: Sequence[int]) -> None:
    """Waits for processes to end, and fails where one does not."""
    deadline = time.monotonic() + 30 * SLOWNESS
    while any(is_alive(number) for number in numbers):
        assert time.monotonic() < deadline, "a process that was started is still there"
        time.sleep(0.1)


def assert_same(dataset: Dataset, expected: Dataset, *, error: float = 1e-5) -> None:
    """Asserts the same ids in the same order, and vectors within a relative error."""
    assert dataset.column_names == expected.column_names
    assert list(dataset["id"][:]) == list(expected["id"][:])
    for name in expected.column_names:
        if name.startswith("vector"):  # one a layer
            vectors, reference = dataset[name][:], expected[name][:]
            assert float(((vectors - reference).norm(dim=1) / reference.norm(dim=1)).max()) < error
