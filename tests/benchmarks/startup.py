"""How long a run takes from the command to the first vectors on disk.

    python -m tests.benchmarks.startup --data memories.jsonl --repeats 5

In: texts. Out: a table: seconds from the start of the process to the first flush in the journal, and to what lies on
the way there. How: the real command in a process of its own; its journal is looked at every few milliseconds, and the
process is ended after its first flush.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from memvec.config.compose import sample_path
from memvec.run.folder import RunFolder
from memvec.writer.frames import SUFFIX

POLL_SECONDS = 0.005


def milestones(folder: RunFolder) -> dict[str, Callable[[], bool]]:
    """Returns what to wait for, in the order in which it comes."""
    return {
        "the folder is claimed (imports, configuration)": folder.fingerprint.exists,
        "the input is tokenised": folder.remaining_rows.exists,
        "the first vectors are flushed": lambda: any(
            file.stat().st_size > 0 for file in folder.journal.glob(f"*{SUFFIX}")
        ),
    }


def measure(command: list[str], folder: RunFolder) -> dict[str, float]:
    """Runs the command until its first flush; returns the seconds to each milestone.

    Raises:
        RuntimeError: The process ended before.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        seconds: dict[str, float] = {}
        try:
            for name, reached in milestones(folder).items():
                while not reached():
                    if process.poll() is not None:
                        raise RuntimeError(f"the run ended before its first flush: {process.communicate()[1]}")
                    time.sleep(POLL_SECONDS)
                seconds[name] = time.perf_counter() - start
        finally:
            process.kill()
    return seconds


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=sample_path(), metavar="PATH", help="as data.path (default: the sample)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of memvec's configuration")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(prefix="memvec-startup-") as scratch:
        for repeat in range(1 + options.repeats):  # the first warms the caches of files and models
            folder = RunFolder(Path(scratch) / str(repeat))
            settings = [f"data.path={options.data}", f"output_dir={folder.root}", "trainer.enable_progress_bar=false"]
            runs.append(measure([sys.executable, "-m", "memvec.predict", *settings, *options.overrides], folder))
    for name in runs[0]:
        seconds = [run[name] for run in runs[1:]]
        sys.stdout.write(f"{name:<50} {median(seconds):6.2f} s  ({min(seconds):.2f}-{max(seconds):.2f})\n")


if __name__ == "__main__":
    main()
