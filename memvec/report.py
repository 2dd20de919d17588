"""Entry: a finished run or sweep as one page.

    python -m memvec.report runs/a
    python -m memvec.report runs/layers layer=16
    python -m memvec.report outputs/sweeps/2026-11-23/16-00-00
    python -m memvec.report s3://bucket/runs/b

In: the folder of a run or of a sweep, or the address at which a run was published. Out: `report.html` in that folder,
which opens from disk and asks the network for nothing, and of a run at an address in `outputs/<date>/<time>`; of a
sweep also the table on the terminal, `sweep.csv` and `sweep.png`. A sweep makes its own when it ends.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from memvec.errors import ConfigError, MemvecError, on_one_line
from memvec.files import atomic_file, make_root, writing
from memvec.layout import RunLayout
from memvec.process import import_parts
from memvec.sweep.jobs import FAILED, failed_jobs
from memvec.urls import is_url


def write_report(folder: str | Path, *, layer: int | None = None) -> list[str]:
    """Writes the report of a run or a sweep; returns what is printed.

    Args:
        folder: The run's or the sweep's folder, or the address of a published run.
        layer: Of a run of several layers, the one to show; None is the last that it names.

    Raises:
        ConfigError: The run has no such layer, or the address cannot be used.
        ExtraError: A run's map, or the address, needs a package that is not installed.
        RunFolderError: There is no finished run in it.
        WriterError: The page cannot be written.
    """
    from memvec.page.render import render_page
    from memvec.page.run import run_page
    from memvec.page.sweep import sweep_page
    from memvec.remote import local_path
    from memvec.run.folder import RunFolder
    from memvec.run.remote import local_run
    from memvec.sweep.table import write_table

    local = local_run(folder)
    run = RunFolder(local)
    if run.manifest.exists() or run.journal.is_dir():
        contents = run_page(run, layer=layer)
        is_mirror = is_url(local_path(str(folder)))  # which goes when nobody has used it for a while
        return [f"report     {_write_page(_new_folder() if is_mirror else run, render_page(contents))}"]
    if layer is not None:
        raise ConfigError("layer", layer, found=f"{folder} holds no run", advice="of a sweep, name the folder of one")
    lines = [*write_table(local), *failed_lines(local)]
    return [*lines, f"report     {_write_page(run, render_page(sweep_page(local)))}"]


def _new_folder() -> RunLayout:
    """Makes the folder that a command's results go to where none is named (conf/launch/default.yaml)."""
    folder = RunLayout(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}")
    with writing(folder.root):
        make_root(folder.root)
    return folder


def failed_lines(folder: Path) -> list[str]:
    """Returns a line for every job that failed."""
    return [f"job {job} failed with exit code {code}" for job, code in failed_jobs(folder).items()]


def _write_page(folder: RunLayout, page: str) -> Path:
    with atomic_file(folder.page) as partial:
        # A path need not be Unicode; a lone surrogate becomes what JSON escapes it as.
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return folder.page


def _say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{on_one_line(line)}\n" for line in lines))


def _folder(argument: str) -> str:
    """Returns a folder, which may be typed as it is to other commands, `output_dir=FOLDER`."""
    return argument.removeprefix("output_dir=")


def _layer(argument: str) -> int:
    """Returns the layer of `layer=N`; argparse makes a line of its error."""
    name, _, value = argument.partition("=")
    if name != "layer" or not re.fullmatch(r"-?\d{1,6}", value):
        raise argparse.ArgumentTypeError(f"found {argument!r}; allowed: layer=N")
    return int(value)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other command does."""

    def error(self, message: str) -> NoReturn:
        """Raises it."""
        raise ConfigError(found=message, advice="--help says what is typed")


class SweepTable(Callback):
    """Prints the table when a sweep ends; Hydra calls it (conf/predict.yaml, `hydra.callbacks`)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forgets which jobs of an earlier sweep in this folder failed."""
        shutil.rmtree(Path(config.hydra.sweep.dir) / FAILED, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes and prints the report of the sweep's folder, and ends the process with the worst job's exit code."""
        folder = Path(config.hydra.sweep.dir)
        try:
            lines = write_report(folder)
        except MemvecError as error:  # no job has finished; each has said why
            lines = [str(error), *failed_lines(folder)]
        _say([*lines, f"sweep      {folder.absolute()}"])
        if failed := failed_jobs(folder):
            sys.exit(max(failed.values()))


def main() -> None:
    """Makes the report of the folder that the command line names."""
    parser = _Parser(prog="python -m memvec.report", description="A finished run or sweep as a page.")
    parser.add_argument("folder", type=_folder, help="the folder of a run or of a sweep, or a published run's address")
    parser.add_argument("layer", type=_layer, nargs="?", metavar="layer=N", help="of a run of several, the one to show")
    try:
        arguments = parser.parse_args()
        import_parts("memvec.page.run")
        _say(write_report(arguments.folder, layer=arguments.layer))
    except MemvecError as error:
        sys.stderr.write(f"memvec: error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
