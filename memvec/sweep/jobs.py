"""Sweeps: `python -m memvec.predict -m data.batch_size=1,8,32`, every job in a process and a folder of its own.

In: one job of a Hydra sweep. Out: its finished run in the sweep's folder.

How: the sweeping process starts each job as the command line that a user would have typed for it. Why a process:
Lightning starts further ranks by running this program's own command line again, which in a sweep would be the whole
sweep; and after a job its process group and its environment variables stay behind. A job that fails does not end the
others: it leaves its exit code in the sweep's folder, wherever Hydra's launcher ran it, and the sweep ends with the
largest (`memvec.report`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from memvec.config.overrides import quoted
from memvec.fields import JsonObject
from memvec.files import atomic_file, make_folder, read_json
from memvec.process import stop_on_signal

FAILED = ".failed"


def is_sweep() -> bool:
    """Whether this process runs a job of a sweep itself, instead of having been started for one."""
    return HydraConfig.get().mode == RunMode.MULTIRUN and "LOCAL_RANK" not in os.environ


def run_job() -> None:
    """Runs the current job of the sweep in a process of its own, which explains what goes wrong.

    Raises:
        Interrupted: There was a signal; the job has flushed what it had.
    """
    hydra = HydraConfig.get()
    command = job_command(hydra, Path(hydra.runtime.output_dir))
    code = _wait(subprocess.Popen(command, cwd=hydra.runtime.cwd))
    if code != 0:
        note = Path(hydra.runtime.cwd) / hydra.sweep.dir / FAILED / str(hydra.job.num)
        make_folder(note.parent)
        with atomic_file(note) as partial:
            partial.write_text(str(code), encoding="utf-8")


def _wait(job: subprocess.Popen[bytes]) -> int:
    """Waits for a job and returns its exit code; one that is signalled has the time to flush.

    A terminal sends Ctrl-C to the job as well, so that it must not be passed on: two of them end a job at once.

    Raises:
        Interrupted: There was a signal.
    """

    def pass_on(number: int) -> None:
        if number == signal.SIGTERM:
            job.terminate()

    with stop_on_signal(pass_on, kill=job.kill, said=""):  # the job itself says what it does
        job.wait()
    return int(job.returncode)


def failed_jobs(sweep: Path) -> dict[str, int]:
    """Returns the exit codes of the jobs that failed, by their names, in order.

    Args:
        sweep: The sweep's folder.
    """
    notes = [path for path in (sweep / FAILED).glob("*") if path.name.isdecimal()]
    notes.sort(key=lambda path: (len(path.name), path.name))
    return {note.name: JsonObject(note, {"code": read_json(note)}).take("code", int) for note in notes}


def job_command(hydra: HydraConf, folder: Path) -> list[str]:
    """Returns the command line of one job.

    Args:
        hydra: Hydra's configuration of the job.
        folder: The job's folder.
    """
    config_folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    overrides = [
        override for override in hydra.overrides.task if override.partition("=")[0].lstrip("+") != "output_dir"
    ]
    command = [sys.executable, "-m", f"memvec.{hydra.job.name}"]
    for path in config_folders:
        command += ["--config-dir", path]
    return [*command, "--config-name", str(hydra.job.config_name), *overrides, f"output_dir={quoted(folder)}"]
