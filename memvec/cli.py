"""Runs a task under Hydra and says what went wrong in one line.

In: a function of a configuration. Out: an exit code: 0; 1 for an error named in one line; 2 for a configuration that
cannot be composed or used. A defect of memvec keeps its traceback.

How: Hydra reports errors itself, over several lines, unless `HYDRA_FULL_ERROR` asks it to raise them; so that is set
around Hydra and, for the task and the processes it starts, put back as the user has it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from memvec.config import conf_folder, config_error_line, register_resolvers
from memvec.data.reader import one_line
from memvec.errors import Interrupted, MemvecError
from memvec.interrupt import end_with_parent
from memvec.ranks import started_rank
from memvec.sweep import is_sweep, run_job

FULL_ERROR = "HYDRA_FULL_ERROR"
EXPECTED = (MemvecError, HydraException, OmegaConfBaseException, OSError)
log = logging.getLogger(__name__)


class Outcome(Protocol):
    """What a task returns."""

    def lines(self) -> list[str]:
        """Returns what is printed at the end."""


def main(task: Callable[[DictConfig], Outcome], *, config_name: str) -> None:
    """Composes the configuration from the command line, runs the task with it and ends the process.

    Args:
        task: What to run.
        config_name: The top-level file of conf/.
    """
    if started_rank() > 0:
        end_with_parent()
    register_resolvers()
    as_the_user_has_it = os.environ.get(FULL_ERROR)

    job_codes: list[int] = []

    def job(cfg: DictConfig) -> None:
        with _environment(FULL_ERROR, as_the_user_has_it):
            if is_sweep():
                job_codes.append(run_job())
                return
            _set_output_dir(cfg)
            try:
                summary = task(cfg)
            except EXPECTED as error:
                if as_the_user_has_it == "1":
                    raise
                code = _report(error)
                _remove_if_empty(HydraConfig.get().runtime.output_dir)
                sys.exit(code)  # past Hydra, which would add lines of its own
            if started_rank() == 0:
                for line in summary.lines():
                    log.info(line)

    decorated: Callable[[], None] = hydra.main(
        version_base="1.3", config_path=str(conf_folder()), config_name=config_name
    )(job)
    try:
        with _environment(FULL_ERROR, "1"):
            decorated()
        sys.exit(max(job_codes, default=0))
    except EXPECTED as error:
        if as_the_user_has_it == "1":
            raise
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(_report(Interrupted(signal.SIGINT)))
    except SystemExit as stop:
        # Lightning turns a Ctrl-C that comes before the first batch into exit code 1.
        sys.exit(_report(Interrupted(signal.SIGINT)) if isinstance(stop.__context__, KeyboardInterrupt) else stop.code)


def _report(error: Exception) -> int:
    rank = f"rank {started_rank()}: " if started_rank() else ""
    if isinstance(error, MemvecError):
        line, code = str(error), error.exit_code
    elif isinstance(error, HydraException | OmegaConfBaseException):  # some of Hydra's are OSErrors too
        line, code = config_error_line(error), 2
    else:
        line, code = one_line(error), 1
    kind = "" if isinstance(error, Interrupted) else "error: "
    sys.stderr.write(f"memvec: {kind}{rank}{line}\n")
    return code


def _set_output_dir(cfg: DictConfig) -> None:
    """Sets `output_dir` to the folder Hydra chose, where the user named none."""
    if cfg.output_dir is None:
        with open_dict(cfg):
            cfg.output_dir = HydraConfig.get().runtime.output_dir


def _remove_if_empty(folder: str) -> None:
    """Takes away the folder that Hydra made for a run that never began."""
    with suppress(OSError):
        Path(folder).rmdir()


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    before = os.environ.get(name)
    _set_environment(name, value)
    try:
        yield
    finally:
        _set_environment(name, before)


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
