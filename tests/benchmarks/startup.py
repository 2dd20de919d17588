"""How long commands take to start, against `import torch` in the same minutes.

    python -m tests.benchmarks.startup --data memories.jsonl --repeats 5

In: texts. Out: a table: seconds, and how many times what `import torch` takes, of `--help`, of a misspelt override, of
a run of two rows with a tiny model, and of a run over the texts up to its first flush, with what lies on the way there.
How: the real commands, in turn, each in a process of its own; the last one's journal is looked at every few
milliseconds, and the process is ended after its first flush.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from memvec.config.compose import sample_path
from memvec.run.folder import RunFolder
from memvec.writer.frames import SUFFIX
from tests.helpers.models import save_model
from tests.helpers.processes import arguments, write_texts

POLL_SECONDS = 0.005
TORCH = "import torch"


def milestones(folder: RunFolder) -> dict[str, Callable[[], bool]]:
    """Returns what to wait for, in the order in which it comes."""
    return {
        "the folder is claimed (imports, configuration)": folder.fingerprint.exists,
        "the input is tokenised": folder.remaining_rows.exists,
        "the first vectors are flushed": lambda: any(
            file.stat().st_size > 0 for file in folder.journal.glob(f"*{SUFFIX}")
        ),
    }


def to_first_flush(command: Sequence[str], folder: RunFolder) -> dict[str, float]:
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


def to_end(command: Sequence[str], code: int = 0) -> float:
    """Runs the command; returns the seconds until it ends.

    Raises:
        RuntimeError: It ended with another exit code.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=sample_path(), metavar="PATH", help="as data.path (default: the sample)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of memvec's configuration, for these texts")
    options = parser.parse_args()
    command = [sys.executable, "-m", "memvec.predict"]
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="memvec-startup-") as scratch:
        root = Path(scratch)
        two_rows, model = write_texts(root / "two.jsonl", 2), save_model(root / "model")
        for repeat in range(1 + options.repeats):  # the first warms the caches of files and models
            folder = RunFolder(root / str(repeat))
            settings = [f"data.path={options.data}", f"output_dir={folder.root}", "trainer.enable_progress_bar=false"]
            runs.append(
                {
                    TORCH: to_end([sys.executable, "-c", "import torch"]),
                    "--help": to_end([*command, "--help"]),
                    "a misspelt override": to_end([*command, "data.batchsize=3"], code=2),
                    "two rows, a tiny model": to_end(arguments(two_rows, root / f"two-{repeat}", model)),
                    **to_first_flush([*command, *settings, *options.overrides], folder),
                }
            )
    torch = median(run[TORCH] for run in runs[1:])
    for name in runs[0]:
        seconds = [run[name] for run in runs[1:]]
        middle, spread = median(seconds), f"({min(seconds):.2f}-{max(seconds):.2f})"
        sys.stdout.write(f"{name:<50} {middle:6.2f} s  {spread:<15} {middle / torch:5.2f} x\n")


if __name__ == "__main__":
    main()
