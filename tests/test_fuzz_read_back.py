"""Damaged files of a finished run: whatever reads them gives right results or one line, never anything else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memvec
from memvec.digest import as_hex
from memvec.errors import MemvecError, on_one_line
from memvec.files import write_json
from memvec.retrieval.comparison import evaluation_rows, shown_evaluation
from memvec.retrieval.measures import MEASURES
from memvec.run.folder import RunFolder
from memvec.run.parts import digests_of, read_batches
from memvec.run.reuse import check_runs, find_runs
from memvec.run.summary import RunSummary, read_summary
from memvec.schema import VECTOR
from memvec.sweep.table import finished_jobs, shown_table, sweep_rows
from tests.helpers.runs import random_vectors, write_run

pytest.importorskip("sklearn")

from memvec.page.charts import run_charts
from memvec.page.render import render_page
from memvec.page.run import run_page

pytestmark = pytest.mark.slow
VARIANTS = 300
VECTORS = random_vectors(8, 4)
REJECTED = [json.dumps({"file": "a.jsonl", "row": 3, "id": "x", "reason": "'text' is empty"})] * 3
HISTORY = {
    "timeline": {name: [1.0, 2.0, 3.0] for name in ("seconds", "entries", "tokens", "padding")},
    "lengths": {"tokens_per_bin": 2, "entries": [0, 5, 3], "padding": [0, 4, 1]},
}
VALUES: list[Any] = [
    *(None, True, -1, 0, 2**70, 10**3000, 1e300, float("nan"), float("inf"), "", "x" * 100_000, "\ud800"),
    *("\x1b[31m\nmemvec: all good\u202e", "${oc.env:HOME}", [], {}, [None], {"_target_": "os.system"}, [[[[]]]]),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one finished run that has everything that is ever read back."""
    folder = write_run(tmp_path_factory.mktemp("sweep") / "0", VECTORS, rejected=REJECTED)
    write_json(folder.history, HISTORY)
    write_json(folder.evaluation, {"queries": 1, "measures": dict.fromkeys(MEASURES, 0.5)})
    return folder.root.parent


@pytest.fixture
def run(sweep: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(sweep, tmp_path / "sweep") / "0")


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """Damages a file as a disk, a copy that was cut short, or a stranger would."""
    at = chance.randrange(len(content))
    end = min(len(content), at + chance.choice([1, 4, 64, 1024]))
    kinds: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :],
        lambda: content[:at] + bytes(end - at) + content[end:],
        lambda: content[:at] + chance.randbytes(end - at) + content[end:],
        lambda: content[:at] + content[end:],
        lambda: content[:end] + content[at:],
        lambda: content + chance.randbytes(7),
    ]
    return chance.choice(kinds)()


def damaged_json(content: bytes, chance: random.Random) -> bytes:
    """Damages the bytes, or puts a value of another type, or none, in the place of one; or nests it deeply."""
    if chance.random() < 0.4:
        return damaged_bytes(content, chance)
    value = json.loads(content)
    if chance.random() < 0.05:
        depth = chance.choice([100, 100_000])
        return b"[" * depth + b"]" * depth
    places = list(places_of(value))
    outer, key = chance.choice(places)
    if chance.random() < 0.2:
        del outer[key]
    else:
        outer[key] = chance.choice(VALUES)
    return json.dumps(value).encode()


def places_of(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places_of(value[key])


def check(use: Callable[[], list[str]]) -> bool:
    """Uses a run; says whether that went well. What is said is one line that steers no terminal."""
    try:
        lines, went_well = use(), True
    except MemvecError as error:
        lines, went_well = [str(error)], False
    assert all(map(str.isprintable, lines))
    return went_well


def loaded(run: RunFolder) -> list[str]:
    dataset = memvec.load(run.root)
    np.testing.assert_array_equal(dataset[VECTOR][:].numpy(), VECTORS)
    assert dataset["id"][:] == [f"group-{n % 5}/{n}" for n in range(len(VECTORS))]
    assert dataset["text"][:] == [f"text {n}" for n in range(len(VECTORS))]
    return []


def reused(run: RunFolder) -> list[str]:
    runs = find_runs(str(run.root), own=RunFolder(run.root.parent / "own"))
    check_runs(runs, {"model": "0" * 64, "layer": -1, "dtype": "float32"})
    batches = [batch for part in runs[0].parts for batch in read_batches(part, runs[0].schema)]
    vectors = [batch.column(VECTOR).flatten().to_numpy().reshape(-1, VECTORS.shape[1]) for batch in batches]
    np.testing.assert_array_equal(np.concatenate(vectors), VECTORS)
    assert [digits for batch in batches for digits in as_hex(digests_of(batch)).tolist()] == [
        f"{n:032x}".encode() for n in range(len(VECTORS))
    ]
    return []


def page(run: RunFolder) -> list[str]:
    contents = run_page(run)
    assert render_page(contents)
    return [value for fact in contents["facts"] for value in fact]


def summary(run: RunFolder) -> list[str]:
    return [on_one_line(line) for line in read_summary(run, RunSummary).lines()]


def charts(run: RunFolder) -> list[str]:
    return [json.dumps(run_charts(read_summary(run, RunSummary), np.arange(8)), allow_nan=False)]


def table(run: RunFolder) -> list[str]:
    return [cell for row in shown_table(sweep_rows(run.root.parent)) for cell in row]


def evaluation(run: RunFolder) -> list[str]:
    return [cell for row in shown_evaluation(evaluation_rows(finished_jobs(run.root.parent))) for cell in row]


JSON_FILES = {
    "manifest.json": [page, *[loaded, reused, summary, table, evaluation] * 5],
    "metrics.json": [page, *[summary, table] * 10],
    "history.json": [page, *[charts] * 20],
    "evaluation.json": [evaluation],
    "rejected.jsonl": [page],
}
SLOW = {"rejected.jsonl": 20}


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_damaged_json_file_is_read_right_or_is_one_line(name: str, run: RunFolder) -> None:
    path = run.root / name
    content = path.read_bytes()
    assert all(check(partial(use, run)) for use in set(JSON_FILES[name]))
    outcomes = set()
    for seed in range(SLOW.get(name, VARIANTS)):
        chance = random.Random(seed)
        damage = damaged_bytes if path.suffix == ".jsonl" else damaged_json
        path.write_bytes(damage(content, chance))
        outcomes.add(check(partial(chance.choice(JSON_FILES[name]), run)))
    assert outcomes == {True, False}


def test_a_damaged_parquet_file_is_read_right_or_is_one_line(run: RunFolder) -> None:
    (path,) = run.vectors.glob("*.parquet")
    content = path.read_bytes()
    for use in (loaded, reused):
        path.write_bytes(content)
        assert check(partial(use, run))
        failed = 0
        for seed in range(VARIANTS):
            path.write_bytes(damaged_bytes(content, random.Random(seed)))
            failed += not check(partial(use, run))
        assert failed > VARIANTS / 2


def test_a_damaged_mapped_copy_is_made_again_or_readable(run: RunFolder) -> None:
    memvec.load(run.root)
    (path,) = run.mapped.glob("*.arrow")
    content = path.read_bytes()
    for seed in range(VARIANTS):
        path.write_bytes(damaged_bytes(content, random.Random(seed)))
        with suppress(MemvecError):
            dataset = memvec.load(run.root)
            assert len(dataset) == len(VECTORS)
            assert len(dataset[:]["text"]) == len(VECTORS)
