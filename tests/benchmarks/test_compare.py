"""The comparison itself: a tiny model, the contestants that need no extra package, and the numbers of its JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks import compare
from tests.benchmarks.contestants import ALL, CONTESTANTS
from tests.benchmarks.limit import build as build_limit
from tests.benchmarks.task import Task, evenly_spaced, measure_work
from tests.benchmarks.worker import Worker, WorkerError
from tests.fixtures import TEXTS

NO_EXTRA = ("reference", "padded", "memvec")


def tiny_task(texts: list[str], model: Path, scratch: Path) -> Task:
    return Task(texts, [0], str(model), "32-true", "cpu", 1, scratch)


@pytest.mark.processes
def test_a_run_measures_every_contestant_and_their_vectors_agree(
    llama: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `main` sets it for its workers; this takes it back afterwards
    options = {
        "--data": write_jsonl([*TEXTS, "too long for the model " * 50]),
        "--model": llama,
        "--contestants": ",".join(NO_EXTRA),
        "--reference-entries": 5,
        "--repeats": 1,
        "--threads": 1,
        "--override": "data.batch_size=4",
        "--output": tmp_path / "benchmark",
    }

    assert compare.main([str(word) for pair in options.items() for word in pair]) == 0

    results = json.loads((tmp_path / "benchmark" / "llama-32-true-memories.json").read_text(encoding="utf-8"))
    contestants = results["contestants"]
    assert tuple(contestants) == NO_EXTRA
    assert results["work"]["entries"] == len(TEXTS)
    assert results["work"]["unique"] == len(set(TEXTS))
    for name, numbers in contestants.items():
        assert numbers["entries"] == (5 if CONTESTANTS[name].on_subset else len(TEXTS))
        tokens = numbers["tokens_per_second"] * numbers["seconds"][0]
        share = tokens / results["work"]["tokens"]  # of a subset: that of its tokens
        assert 0 < share <= 1
        assert numbers["entries_per_second"] == pytest.approx(share * len(TEXTS) / numbers["seconds"][0])
        assert numbers["seconds_from_start"] > len(TEXTS) / numbers["entries_per_second"]
        ratio = contestants["memvec"]["entries_per_second"] / numbers["entries_per_second"]
        assert numbers["memvec_is_faster_by"] == pytest.approx(ratio)
        assert 0 < numbers["share_of_limit"] < 1
        assert numbers["max_relative_error"] < 1e-5
        assert numbers["min_cosine"] > 0.999999
        assert numbers["peak_memory_bytes"] > 0
    assert contestants["reference"]["padding_share"] == 0 < contestants["padded"]["padding_share"]
    assert contestants["memvec"]["details"]["metrics"]["computed_entries"] == len(set(TEXTS))
    assert "memvec is" in capsys.readouterr().out
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "benchmark" / "llama-32-true-memories.png").read_bytes().startswith(b"\x89PNG")


def test_the_fewest_tokens_count_what_prompts_share_once(llama: Path, tmp_path: Path) -> None:
    task = tiny_task(["tea", "tea", "cats"], llama, tmp_path)
    tea, same, cats = task.tokenizer()(task.prompts(task.texts))["input_ids"]
    work = measure_work(task)
    assert tea == same
    assert list(work.lengths) == [len(tea), len(tea), len(cats)]
    assert work.unique == 2
    assert tea[: work.shared_prefix] == cats[: work.shared_prefix]
    assert tea[work.shared_prefix] != cats[work.shared_prefix]
    assert work.fewest_tokens == len(tea) + len(cats) - work.shared_prefix


@pytest.mark.slow
def test_the_limit_is_a_rate_of_the_models_own_products(llama: Path, tmp_path: Path) -> None:
    found = build_limit(tiny_task(["tea"], llama, tmp_path))()
    rate, (_, outputs, inputs) = found["flop_per_second"], found["shape"]
    assert math.isfinite(rate)
    assert rate > 0
    assert {outputs, inputs} <= {16, 32, 64}


@pytest.mark.parametrize(("rows", "most", "expected"), [(5, 9, [0, 1, 2, 3, 4]), (10, 4, [0, 2, 5, 7]), (3, 1, [0])])
def test_a_subset_is_evenly_spaced(rows: int, most: int, expected: list[int]) -> None:
    assert evenly_spaced(rows, most) == expected


def _divide(dividend: int) -> Callable[[int], int]:
    """Dies of a negative number."""
    return lambda number: dividend // number if number >= 0 else os._exit(7)


@pytest.mark.processes
def test_a_worker_outlives_an_error_and_its_death_is_one() -> None:
    worker = Worker("division", _divide, 10)
    worker.wait()
    with pytest.raises(WorkerError, match=r"(?s)division: .*ZeroDivisionError"):
        worker.call(0)
    assert worker.call(5) == 2
    with pytest.raises(WorkerError, match=r"division: its process died \(exit code 7\)"):
        worker.call(-1)
    worker.close()


def test_contestants_that_cannot_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "find_spec", lambda _: None)
    names, skipped = compare.available(ALL, ["padded", "sentence-transformers"], "cpu")
    assert names == ["padded"]
    assert "sentence_transformers is not installed" in skipped["sentence-transformers"]
    monkeypatch.setattr(compare, "find_spec", lambda _: object())
    names, skipped = compare.available(ALL, ["openvino", "memvec"], "cuda")
    assert (names, skipped) == (["memvec"], {"openvino": "it does not run on cuda"})
