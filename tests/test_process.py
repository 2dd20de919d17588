"""Which rank a process was started as, by whatever has started it; and how it imports what it runs with."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys

import pytest

from memvec.process import MALLOC, RANKS, import_parts, started_rank

FAULTS = """
import resource, numpy
import memvec.process
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        numpy.ones(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = faults()
memvec.process.keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 5),  # torchrun, inside SLURM
        ({"SLURM_PROCID": "3"}, 3),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, 1),  # Lightning's launcher
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, 0),
        ({"NODE_RANK": "1"}, 0),  # what a user starts on a second machine, which Lightning has not yet seen
    ],
)
def test_the_started_rank_is_in_the_environment(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*RANKS, "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_rank() == rank


def test_no_rank_of_a_second_machine_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert started_rank() > 0


def test_importing_parts_leaves_the_collector_on() -> None:
    assert gc.isenabled()
    import_parts("memvec.units")
    assert gc.isenabled()


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_pages_of_freed_memory_are_not_mapped_anew() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC}
    said = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    without, kept = map(int, said.stdout.split())
    assert without > 50 * kept
