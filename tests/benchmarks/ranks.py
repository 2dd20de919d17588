"""Entry: how much faster several ranks are than one.

    python -m tests.benchmarks.ranks --data memories.jsonl --ranks 2 --repeats 3

In: texts, and whatever overrides memvec takes. Out: entries a second with one rank and with several, and their ratio.

How: every rank computes with the same number of threads, so that the ideal ratio is the number of ranks; a repeat runs
one command of each kind, the next begins with the other kind, and what counts is the median of the repeats. The rate is
the predict stage's own: starting processes and loading the model are not in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from memvec.config.compose import sample_path
from memvec.files import read_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and prints it; returns the exit status."""
    options = _parse(arguments)
    counts = [1, options.ranks]
    rates: dict[int, list[float]] = {ranks: [] for ranks in counts}
    with tempfile.TemporaryDirectory(prefix="memvec-benchmark-") as scratch:
        for repeat in range(options.repeats):
            for ranks in counts if repeat % 2 == 0 else reversed(counts):
                rate = _entries_per_second(options, ranks, Path(scratch) / f"{repeat}-{ranks}")
                rates[ranks].append(rate)
                sys.stderr.write(f"repeat {repeat + 1}, {ranks} rank(s): {rate:,.2f} entries/s\n")
    one, several = (median(rates[ranks]) for ranks in counts)
    sys.stdout.write(
        f"ranks  threads each  entries/s (median of {options.repeats})\n"
        f"{1:>5}  {options.threads:>12}  {one:,.2f}\n"
        f"{options.ranks:>5}  {options.threads:>12}  {several:,.2f}\n"
        f"{several / one:.2f} x\n"
    )
    return 0


def _entries_per_second(options: argparse.Namespace, ranks: int, folder: Path) -> float:
    """Runs memvec once, as a user does."""
    command = [
        sys.executable, "-m", "memvec.predict", f"data.path={options.data}", f"output_dir={folder}",
        f"trainer.devices={ranks}", "trainer.strategy=" + ("auto" if ranks == 1 else "ddp"),
        "trainer.enable_progress_bar=false", *options.overrides,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return float(read_json(folder / "metrics.json")["entries_per_second"])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranks", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default=sample_path(), metavar="PATH", help="what data.path takes (default: the sample)")
    add("--ranks", type=int, default=2, help="ranks to compare with one (default 2)")
    add("--threads", type=int, default=1, help="CPU threads of each rank (default 1)")
    add("--repeats", type=int, default=3, help="runs of each kind (default 3)")
    add("overrides", nargs="*", help="overrides for both, such as trainer.accelerator=cpu data.limit=500")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
