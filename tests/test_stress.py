"""Kills runs at random moments, over one and two ranks, until they finish, and counts what was lost.

pytest -m stress                       a hundred kills, ten minutes or more, and the soak
MEMVEC_STRESS_DATA=memories.jsonl pytest -n 0 -m stress -k kills -s     over a file of one's own
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import memvec
from tests.helpers.conversations import write_lines
from tests.helpers.processes import (
    arguments,
    assert_same,
    finish,
    kill_group,
    random_texts,
    resume,
    rows_written,
    start,
    write_texts,
)

pytestmark = pytest.mark.processes

ROWS = 4_000
LONGEST_SECONDS = 12


def kill_until_finished(
    data_path: Path, output_dir: Path, model: Path, *overrides: str, kills: int, choose: random.Random
) -> tuple[int, int]:
    """Kills runs in one folder at random moments, then lets one finish.

    Returns how many were killed, and how many entries were computed more than once.
    """
    killed = 0
    while killed < kills:
        ranks = choose.choice([1, 2])
        strategy = ["trainer.strategy=ddp"] if ranks == 2 else []
        command = arguments(data_path, output_dir, model, f"trainer.devices={ranks}", *strategy, *overrides)
        process = start([*command, "data.batch_size=4"])
        deadline = time.monotonic() + choose.uniform(0, LONGEST_SECONDS)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            code, said = finish(process)
            assert code == 0, said
            break
        kill_group(process)
        killed += 1
    if (output_dir / "manifest.json").exists():
        return killed, 0
    written = rows_written(output_dir)
    computed = resume(arguments(data_path, output_dir, model, *overrides)).metrics["computed_entries"]
    return killed, max(0, written + computed - len(memvec.load(output_dir)))


def kill_runs(
    data_path: Path,
    model: Path,
    tmp_path: Path,
    *form: str,
    kills: int,
    seed: int,
    reuse: str = "null",
    error: float = 1e-5,
) -> None:
    """Kills runs of vectors of a form, which may reuse others, and compares them with one that reuses none."""
    choose = random.Random(seed)
    undisturbed = tmp_path / "undisturbed"
    resume(arguments(data_path, undisturbed, model, *form))
    expected = memvec.load(undisturbed)
    killed = twice = runs = 0
    while killed < kills:
        output_dir = tmp_path / f"run-{runs}"
        more, again = kill_until_finished(
            *(data_path, output_dir, model, *form, f"reuse={reuse}"),
            kills=min(choose.randint(2, 6), kills - killed),
            choose=choose,
        )
        found = memvec.load(output_dir)
        assert_same(found, expected, error=error)  # nothing lost, nothing doubled, in order
        for name in (name for name in expected.column_names if not name.startswith("vector")):
            assert list(found[name][:]) == list(expected[name][:]), name
        killed, twice, runs = killed + more, twice + again, runs + 1
    sys.stdout.write(f"seed {seed}: {killed} kills in {runs} runs of {len(expected)} entries; ")
    sys.stdout.write(f"0 lost, 0 duplicated, 0 hung, {twice} entries computed twice\n")


def test_a_few_kills_at_random_moments_lose_nothing(llama: Path, tmp_path: Path) -> None:
    kill_runs(write_texts(tmp_path / "texts.jsonl", ROWS), llama, tmp_path, kills=2, seed=0)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_a_hundred_kills_at_random_moments_lose_nothing(llama: Path, tmp_path: Path) -> None:
    data = os.environ.get("MEMVEC_STRESS_DATA")
    data_path = Path(data).absolute() if data else write_texts(tmp_path / "texts.jsonl", ROWS)
    seed = int(os.environ.get("MEMVEC_STRESS_SEED", random.SystemRandom().randrange(2**31)))
    kill_runs(data_path, llama, tmp_path, kills=100, seed=seed)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_kills_of_a_run_that_reuses_others_lose_nothing(llama: Path, tmp_path: Path) -> None:
    """With two layers in float16 and columns of the input, all in one."""
    rows = [
        {"id": f"m/{n}", "text": text, "day": n // 7, "tags": ["a", "b"][: n % 3]}
        for n, text in enumerate(random_texts(ROWS))
    ]
    form = ("model.layer=[1,-1]", "writer.dtype=float16", "data.keep_columns=[day,tags]")
    for name, known in (("half", rows[::-2]), ("few", rows[:100])):
        path = write_lines(tmp_path / f"{name}.jsonl", known)
        resume(arguments(path, tmp_path / "known" / name, llama, *form))
    grown = write_lines(tmp_path / "grown.jsonl", rows)
    seed = int(os.environ.get("MEMVEC_STRESS_SEED", random.SystemRandom().randrange(2**31)))
    kill_runs(grown, llama, tmp_path, *form, kills=20, seed=seed, reuse=f"{tmp_path}/known/*", error=2e-3)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_memory_is_flat_over_a_million_entries(model_folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Ten times the entries take at most a few bytes each more."""
    peaks = {}
    for rows in (100_000, 1_000_000):
        path, output_dir = write_texts(tmp_path / f"{rows}.jsonl", rows), tmp_path / f"run-{rows}"
        command = arguments(path, output_dir, model_folders("nearly_free"), "trainer.devices=1", "data.max_tokens=8192")
        code, said = finish(start(command), seconds=3600)
        assert code == 0, said
        metrics = json.loads((output_dir / "metrics.json").read_text())
        peaks[rows] = metrics["peak_memory_bytes"]
        sys.stdout.write(f"{rows} entries: peak {peaks[rows] / 2**20:.0f} MiB, {metrics}\n")
    assert peaks[1_000_000] < 2 * 2**30
    assert (peaks[1_000_000] - peaks[100_000]) / 900_000 < 400
