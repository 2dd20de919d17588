"""Lanes, the environment of tests, and how files are spread over processes; the fixtures are in `tests.fixtures`."""

from __future__ import annotations

import os

# Before the libraries are imported, which read it then: nothing here may wait for a network that is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
# Where tests run side by side, more threads would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc

import pytest
from hypothesis import settings

IN_CI = bool(os.environ.get("CI"))
EVERYDAY_LANE = "not processes and not slow and not stress and not gpu"
CI_LANES = "not stress and not gpu"

# The same commit passes or fails every time, on however slow a machine; `pytest --hypothesis-profile=search` looks
# for new counterexamples, which then become an `@example`.
settings.register_profile("everyday", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("ci" if IN_CI else "everyday")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the lanes where the command line names none with `-m`; imports the fixtures where tests run."""
    config.option.markexpr = config.option.markexpr or (CI_LANES if IN_CI else EVERYDAY_LANE)
    # The process that hands tests out to others needs none of them, nor the seconds that their libraries take.
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", default=None):
        gc.disable()  # while libraries are imported and tests collected: a fifth of the time that this takes
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(optionalhook=True)  # a machine with a GPU may lack pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Runs named files in this process, whose start is quicker than theirs, and the suite in one a core, up to four."""
    is_suite = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(4, len(os.sched_getaffinity(0))) if is_suite else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that start processes: they take longest, and behind the last file a core has no work."""
    longest = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in longest)


def pytest_collection_finish() -> None:
    """Spares the garbage collector what the libraries hold: looking through it took a fifth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.enable()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 50)  # the libraries that tests import later are looked through less often
