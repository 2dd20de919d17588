"""Entry: memvec on a GPU against what people use instead, within a time that is set beforehand, without a network.

    python -m tests.benchmarks.gpu --output outputs/gpu --seconds 300

In: shapes of published models, whose random weights are drawn on the device; sets of synthetic texts of seeded lengths.
Out: for every shape and set a JSON file, a chart, and a profile of where memvec's time goes; the tables on stdout.

How: a shape and a set get an equal part of the time that is left, and as much text as fits into it by the device's own
best bfloat16 rate. All contestants run in this process, in turn, and each repeat begins with another one; the median
counts. After every turn a line is printed and the JSON written, so that a run that is cut off leaves what it has
measured; a contestant that fails is a line with the reason.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memvec.config.prompts import named_prompt
from memvec.errors import one_line
from memvec.files import write_json
from memvec.prompt.encoder import PromptEncoder
from memvec.prompt.template import Prompt
from tests.benchmarks import limit, report
from tests.benchmarks.compare import available, each_of, positive, say
from tests.benchmarks.contestants import compete, forget_models, truth
from tests.benchmarks.gpu_contestants import GPU_CONTESTANTS
from tests.benchmarks.lengths import SETS, synthetic_texts
from tests.benchmarks.shapes import SHAPES, save_shape
from tests.benchmarks.task import Task, Work, evenly_spaced, measure_work
from tests.benchmarks.turn import Turn

PRECISION = {"cuda": "bf16-true", "cpu": "32-true"}  # on a processor it is only tried out
SHARE_OF_RATE = 0.3  # what a contestant is expected to reach, for as much text as the time allows
FEWEST, MOST = 64, 20_000  # entries
PROFILED = ("memvec", "memvec-compiled")
COMPARED = 24  # entries, which the reference computes in float32 too


@dataclass(frozen=True)
class Part:
    """One shape and one set of texts.

    Args:
        name: Of its files.
        task: What the contestants are given.
        work: How much it is.
        limits: The device's limit.
        expected: The subset's vectors in float32, `[S, D]`.
        ends: When its time is up, by `time.monotonic`.
    """

    name: str
    task: Task
    work: Work
    limits: list[dict[str, Any]]
    expected: NDArray[np.float32]
    ends: float

    @property
    def is_over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() > self.ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="true")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("no CUDA device; --device cpu --shape tiny tries the benchmark out\n")
        return 1
    ends = time.monotonic() + options.seconds
    parts = [(shape, kind) for shape in options.shape for kind in options.texts]
    with tempfile.TemporaryDirectory(prefix="memvec-gpu-", dir=options.scratch) as scratch:
        for number, (shape, kind) in enumerate(parts):
            now = time.monotonic()
            if now > ends:
                say(f"{shape}, {kind}: not measured, the time is up")
                continue
            until = now + (ends - now) / (len(parts) - number)
            part = _prepare(shape, kind, options, Path(scratch), ends=until)
            results = _compare(part, options)
            written = report.write(results, options.output, name=part.name)
            sys.stdout.write(f"\n{report.table(results)}\n\n{' '.join(map(str, written))}\n")
            sys.stdout.flush()
            forget_models()
            _free(part.task)
    return 0


def _prepare(shape: str, kind: str, options: argparse.Namespace, scratch: Path, *, ends: float) -> Part:
    """Makes the model and as much text as the time allows, and computes what the vectors are compared with."""
    seconds = ends - time.monotonic()
    model = save_shape(shape, scratch / "models" / shape, options.device)
    threads = len(os.sched_getaffinity(0))
    task = Task(["tea"], [0], model, PRECISION[options.device], options.device, threads, scratch)
    limits = [limit.build(task)()]
    few = synthetic_texts(kind, 200, task.tokenizer(), task.template)
    work = measure_work(replace(task, texts=few))
    turn = seconds / (len(options.contestants) + 2) / (options.repeats + 1)

    rate = SHARE_OF_RATE * float(str(limits[0]["flop_per_second"]))
    entries = int(min(max(turn * rate / (work.flop / len(few)), FEWEST), MOST, options.entries or MOST))
    texts = synthetic_texts(kind, entries, task.tokenizer(), task.template)
    task = replace(task, texts=texts, subset=evenly_spaced(entries, COMPARED))
    say(f"{shape}, {kind}: {entries:,} texts, {seconds:.0f} s; the reference in float32 first")
    expected = truth(task)()
    forget_models()
    _free(task)
    return Part(f"{shape}-{kind}", task, measure_work(task), limits, expected, ends)


def _compare(part: Part, options: argparse.Namespace) -> report.Results:
    names, skipped = available(GPU_CONTESTANTS, options.contestants, part.task.device)
    turns: dict[str, list[Turn]] = {}
    built: dict[str, Callable[[Sequence[int]], Turn]] = {}
    path = options.output / f"{part.name}.json"
    options.output.mkdir(parents=True, exist_ok=True)

    def results() -> report.Results:
        return report.summarise(
            part.task,
            part.work,
            turns,
            contestants=GPU_CONTESTANTS,
            truth=part.expected,
            limits=part.limits,
            skipped=skipped,
            memory="beyond what was held before the turn",
        )

    for name in _in_turn(names, options.repeats):
        if name in skipped or part.is_over:
            continue
        try:
            if name not in built:
                built[name] = compete(GPU_CONTESTANTS[name], part.task)
                built[name](evenly_spaced(len(part.task.texts), COMPARED))  # loads and warms up
            turns.setdefault(name, []).append(_turn(part.task, built[name], GPU_CONTESTANTS[name].rows(part.task)))
        except Exception as error:  # whatever it is, the other contestants go on
            skipped[name] = f"failed: {one_line(error)}"
            say(f"{part.name}: {name}: {skipped[name]}")
            continue
        numbers = results()
        write_json(path, numbers)
        say(f"{part.name}: {_line(name, numbers)}")
    skipped.update((name, "the time was up") for name in names if name not in turns and name not in skipped)
    for name in PROFILED:
        if name in turns:
            profile = options.output / f"{part.name}-{name}-profile.txt"
            profile.write_text(_where_time_goes(part.task, built[name]), encoding="utf-8")
    return results()


def _turn(task: Task, run: Callable[[Sequence[int]], Turn], rows: Sequence[int]) -> Turn:
    """Runs a contestant once; on a GPU the memory it takes is what comes on top of the others' weights."""
    if task.device == "cpu":
        return run(rows)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    turn = run(rows)
    return replace(turn, peak_memory_bytes=turn.peak_memory_bytes - held)


def _in_turn(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Yields every name once a repeat; the next repeat begins with another."""
    for repeat in range(repeats):
        start = repeat % max(len(names), 1)
        yield from (*names[start:], *names[:start])


def _line(name: str, results: report.Results) -> str:
    """Returns what is said after a turn."""
    numbers, rate = results["contestants"][name], results["limit"]["flop_per_second"]
    return (
        f"{name}: {numbers['entries_per_second']:,.1f} entries/s, {numbers['tokens_per_second']:,.0f} tokens/s, "
        f"{numbers['share_of_limit']:.1%} of {rate / 1e12:,.2f} TFLOP/s, {numbers['padding_share']:.1%} padding, "
        f"{numbers['peak_memory_bytes'] / 2**30:.2f} GiB, cosine {numbers['min_cosine']:.6f}"
    )


def _where_time_goes(task: Task, run: Callable[[Sequence[int]], Turn]) -> str:
    """Returns what a profile of one turn says: how long the device was busy, and with what."""
    from torch.profiler import ProfilerActivity, profile

    rows = evenly_spaced(len(task.texts), 2_000)
    plain = median(run(rows).seconds for _ in range(3))
    prompts = PromptEncoder(task.tokenizer(), Prompt(*named_prompt("one_token_zh")))
    start = time.perf_counter()
    prompts.encode([task.texts[row] for row in rows])
    tokenising = time.perf_counter() - start
    on_device = task.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities, acc_events=True) as recorded:  # without it, torch warns at the end
        run(rows)
    events = recorded.key_averages()
    column = "self_device_time_total" if on_device else "self_cpu_time_total"
    busy = _seconds_on_device(recorded.events()) if on_device else sum(map(attrgetter(column), events)) / 1e6
    worker = "the device" if on_device else "the processor"
    head = f"{len(rows):,} entries: {plain:.3f} s, tokenising {tokenising:.3f} s; {worker} works for {busy:.3f} s"
    return f"{head}\n\n{events.table(sort_by=column, row_limit=25, max_name_column_width=60)}\n"


def _seconds_on_device(events: Iterable[Any]) -> float:
    """Returns how long kernels ran; in a table of averages one counts twice, as itself and with its operator."""
    on_device = [event.time_range for event in events if event.device_type.name == "CUDA"]
    busy = until = 0.0
    for start, end in sorted((kernel.start, kernel.end) for kernel in on_device):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def _free(task: Task) -> None:
    gc.collect()
    if task.device == "cuda":
        torch.cuda.empty_cache()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("outputs/gpu"), metavar="DIR", help="(default: %(default)s)")
    add("--seconds", type=positive, default=300, metavar="S", help="for everything (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(default: %(default)s)")
    add(
        "--shape", type=each_of(SHAPES), default=["qwen3-0.6b", "qwen3-8b", "qwen3-4b"], metavar="A,B",
        help=f"of {', '.join(SHAPES)}",
    )  # fmt: skip
    add("--texts", type=each_of(SETS), default=list(SETS), metavar="A,B", help=f"of {', '.join(SETS)}")
    add(
        "--contestants", type=each_of(GPU_CONTESTANTS), default=list(GPU_CONTESTANTS), metavar="A,B",
        help=f"of {', '.join(GPU_CONTESTANTS)}",
    )  # fmt: skip
    add("--entries", type=positive, metavar="N", help="at most so many texts (default: as the time allows)")
    add("--repeats", type=positive, default=3, metavar="N", help="(default: %(default)s)")
    add("--scratch", type=Path, metavar="DIR", help="where models are written, such as /dev/shm (default: TMPDIR)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
