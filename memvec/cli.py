"""Runs a task under Hydra and says what went wrong in one line.

In: a function of a configuration. Out: an exit code: 0; 1 for an error named in one line; 2 for a configuration that
cannot be composed or used. A defect of memvec keeps its traceback.

How: Hydra reports errors itself, over several lines, unless `HYDRA_FULL_ERROR` asks it to raise them; so that is set
around Hydra and, for the task and the processes it starts, put back as the user has it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from memvec.config.compose import command_help, conf_folder, config_error, known_overrides, register_resolvers
from memvec.config.overrides import SWEEP, as_overrides
from memvec.config.values import folder_here
from memvec.errors import ConfigError, Interrupted, MemvecError, RunFolderError, on_one_line, one_line
from memvec.process import end_with_parent, import_parts, keep_freed_memory, started_rank
from memvec.sweep.jobs import is_sweep, run_job

FULL_ERROR = "HYDRA_FULL_ERROR"
PRIVATE = 0o077
EXPECTED = (MemvecError, HydraException, OmegaConfBaseException, OSError)


class Outcome(Protocol):
    """What a task returns."""

    def lines(self) -> list[str]:
        """Returns what is printed at the end."""


def main(task: Callable[[DictConfig], Outcome], *, config_name: str, parts: str, sweeps: bool = True) -> None:
    """Composes the configuration from the command line, runs the task with it and ends the process.

    Args:
        task: What to run.
        config_name: The top-level file of conf/.
        parts: The module that imports what the task consists of.
        sweeps: Whether `-m` runs a sweep of it.
    """
    if sys.argv[1:] in (["--help"], ["-h"]):
        _say(command_help(config_name).splitlines())
        return
    if started_rank() > 0:
        end_with_parent()
    if not sweeps and not SWEEP.isdisjoint(sys.argv):
        advice = "give it the folder of one that has run"
        sys.exit(_report(ConfigError(f"memvec.{config_name}", found="runs no sweeps", advice=advice)))
    if sweeps:
        try:
            _check_output_dir(sys.argv[1:])  # Hydra would make a folder of that name
            if not SWEEP.isdisjoint(sys.argv):
                _check_publish(sys.argv[1:])
        except ConfigError as error:
            sys.exit(_report(error))
    if flag := _override_as_flag(sys.argv[1:], config_name):
        sys.exit(_report(ConfigError(flag, found="overrides are typed without --", allowed=flag.lstrip("-"))))
    sys.argv[1:] = as_overrides(sys.argv[1:])  # Lightning gives them to the ranks that it starts
    keep_freed_memory()
    register_resolvers()
    as_the_user_has_it = os.environ.get(FULL_ERROR)
    umask = os.umask(PRIVATE)  # for the folders that Hydra makes

    def job(cfg: DictConfig) -> None:
        with _environment(FULL_ERROR, as_the_user_has_it), _umask(umask):
            if is_sweep():
                _run_job()
                return
            try:
                _set_output_dir(cfg)
                import_parts(parts)
                outcome = task(cfg)
            except EXPECTED as error:
                if as_the_user_has_it == "1":
                    raise
                sys.exit(_report(error, config_name))  # past Hydra, which would add lines of its own
            finally:
                _remove_if_empty(HydraConfig.get().runtime.output_dir)
            if started_rank() == 0:
                _say(outcome.lines())

    decorated: Callable[[], None] = hydra.main(
        version_base="1.3", config_path=str(conf_folder()), config_name=config_name
    )(job)
    try:
        with _environment(FULL_ERROR, "1"):
            decorated()
    except EXPECTED as error:
        if as_the_user_has_it == "1":
            raise
        if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra makes the folder
            error = RunFolderError("output_dir", found=f"the run's folder cannot be made: {one_line(error)}")
        sys.exit(_report(error, config_name))
    except KeyboardInterrupt:
        sys.exit(_report(Interrupted(signal.SIGINT)))
    except SystemExit as stop:
        # Lightning turns a Ctrl-C that comes before the first batch into exit code 1.
        sys.exit(_report(Interrupted(signal.SIGINT)) if isinstance(stop.__context__, KeyboardInterrupt) else stop.code)


def _check_output_dir(arguments: Sequence[str]) -> None:
    """Refuses to compute into a folder that is not of this machine."""
    for name, _, value in (argument.partition("=") for argument in arguments):
        if name.lstrip("+") == "output_dir":
            folder_here(name, value.strip("\"'"))


def _check_publish(arguments: Sequence[str]) -> None:
    """Refuses to publish a sweep: a place holds one run, and each of its jobs is another."""
    for name, _, value in (argument.partition("=") for argument in arguments):
        if name.lstrip("+") == "publish" and value not in ("", "null"):
            found = "every job of a sweep is a run of its own, and this is one place"
            advice = "afterwards a job's own command, with output_dir=SWEEP/JOB, publishes it"
            raise ConfigError("publish", value, found=found, allowed="none with -m", advice=advice)


def _override_as_flag(arguments: Sequence[str], config_name: str) -> str | None:
    """Returns the first override that was typed as other programs' options are."""
    flags = [argument for argument in arguments if argument.startswith("--") and "=" in argument]
    known = known_overrides(config_name) if flags else []
    return next((flag for flag in flags if flag.lstrip("-").partition("=")[0] in known), None)


def _run_job() -> None:
    try:
        run_job()
    except Interrupted as error:
        sys.exit(_report(error))  # past Hydra, which would go on with the next job


def _say(lines: Sequence[str]) -> None:
    """Prints lines; a reader that has had enough, as `head` has, is no error."""
    try:
        sys.stdout.write("".join(f"{on_one_line(line)}\n" for line in lines))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit says nothing either


def _report(error: Exception, config_name: str = "predict") -> int:
    """Says what ended this process, and returns its exit code.

    A signal ends all processes of a run, and the first one says so for all of them.
    """
    if isinstance(error, Interrupted) and started_rank() > 0:
        return error.exit_code
    rank = f"rank {started_rank()}: " if started_rank() else ""
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of Hydra's are OSErrors too
        error = config_error(error, config_name=config_name)
    line, code = (str(error), error.exit_code) if isinstance(error, MemvecError) else (one_line(error), 1)
    kind = "" if isinstance(error, Interrupted) else "error: "
    sys.stderr.write(f"memvec: {kind}{rank}{on_one_line(line)}\n")
    return code


def _set_output_dir(cfg: DictConfig) -> None:
    """Sets `output_dir` to the folder Hydra chose, where the user named none."""
    if cfg.output_dir is None:
        with open_dict(cfg):
            cfg.output_dir = HydraConfig.get().runtime.output_dir


def _remove_if_empty(folder: str) -> None:
    """Takes away the folder that Hydra made for a run that never began, or was only planned."""
    with suppress(OSError):
        if Path(folder).resolve() != Path.cwd():
            Path(folder).rmdir()


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Makes files with the user's umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


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
