"""What happens to the generation of memories when something happens to it: real processes, really killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import memvec
from memvec.data.prepared import read_signature
from memvec.errors import InputError
from memvec.generation.completions import read_completions
from memvec.generation.summary import GenerationSummary
from memvec.run.folder import RunFolder
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, write_lines
from tests.helpers.processes import finish, flow, journal_bytes, kill_group, start, wait_until
from tests.helpers.refusals import refused
from tests.test_generate import DRAWN, MARKS, texts

pytestmark = pytest.mark.processes

ROWS = 150
SLOW = ("data.batch_size=1", "writer.flush_every=2")
Done = tuple[int, str]


@pytest.fixture(scope="module")
def root(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations, a file that is broken, and what an undisturbed run gives."""
    root = tmp_path_factory.mktemp("generate")
    write_lines(root / "conversations.jsonl", marked(ROWS, MARKS))
    (root / "broken.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "Hi"}]}\n{"id": "b",\n')
    memvec.generate(compose(overrides(root, scripted, "expected"), config_name="generate"))
    return root


def overrides(root: Path, model: Path, output: str, *other: str, data: str = "conversations.jsonl") -> list[str]:
    return generation_overrides(root / data, root / output, model, *DRAWN, *other)


def go_on(root: Path, model: Path, output: str) -> GenerationSummary:
    return memvec.generate(compose(overrides(root, model, output), config_name="generate"))


def windows_done(folder: RunFolder) -> int:
    """Returns how many windows' first output is in the journal."""
    rows = len(np.load(folder.first_rows))
    return int(read_completions(folder.journal, rows=rows, signature=read_signature(folder)).is_done(0).sum())


def killed_in_the_midst(root: Path, model: Path, output: str) -> None:
    process = start(flow("generate", overrides(root, model, output, *SLOW)))
    wait_until(lambda: journal_bytes(root / output) > 0, process)
    assert process.poll() is None
    kill_group(process)


def stopped(root: Path, model: Path, number: int, output: str) -> Done:
    process = start(flow("generate", overrides(root, model, output, *SLOW)))
    wait_until(lambda: journal_bytes(root / output) > 2_000, process)
    if number == signal.SIGINT:  # a terminal sends it to every process of the group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return finish(process, seconds=60)


@pytest.fixture(scope="module")
def jobs(root: Path, scripted: Path) -> dict[str, Done | None]:
    """Runs every job of this file, two at a time, and returns what they ended with."""

    def typed(output: str, *other: str, data: str = "conversations.jsonl") -> Done:
        return finish(start(flow("generate", overrides(root, scripted, output, *other, data=data))))

    jobs: dict[str, Callable[[], Done | None]] = {
        "killed": lambda: killed_in_the_midst(root, scripted, "killed"),
        "SIGTERM": lambda: stopped(root, scripted, signal.SIGTERM, "SIGTERM"),
        "SIGINT": lambda: stopped(root, scripted, signal.SIGINT, "SIGINT"),
        "broken": lambda: typed("broken", data="broken.jsonl"),
        "misspelt": lambda: typed("misspelt", "generation.temprature=1"),
    }
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))


def test_a_killed_run_does_not_compute_flushed_windows_again(
    root: Path, scripted: Path, jobs: dict[str, Done], caplog: pytest.LogCaptureFixture
) -> None:
    assert jobs["killed"] is None
    kept = windows_done(RunFolder(root / "killed"))
    assert 0 < kept < ROWS
    with caplog.at_level("INFO", logger="memvec"):
        summary = go_on(root, scripted, "killed")
    assert f"resuming {root / 'killed'}: {ROWS - kept} windows are left to compute" in caplog.text
    assert texts(root / "killed") == texts(root / "expected")
    assert summary.metrics["computed_entries"] == ROWS - kept + summary.counts.retried


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_flushes_and_sets_the_exit_code(
    name: str, code: int, root: Path, scripted: Path, jobs: dict[str, Done]
) -> None:
    ended_with, said = jobs[name]
    assert ended_with == code, said
    assert "Traceback" not in said
    assert f"memvec: stopped by {name}; what was computed is kept" in said
    assert f"output_dir={root / name} resumes the run" in said
    kept = windows_done(RunFolder(root / name))
    assert 0 < kept < ROWS
    summary = go_on(root, scripted, name)
    assert texts(root / name) == texts(root / "expected")
    assert summary.metrics["computed_entries"] == ROWS - kept + summary.counts.retried


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("broken", 1, "broken.jsonl, line 2: not JSON"),
        ("misspelt", 2, "temprature"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name: str, code: int, named: str, root: Path, jobs: dict[str, Done]) -> None:
    ended_with, said = jobs[name]
    assert ended_with == code, said
    (line,) = said.splitlines()
    assert line.startswith("memvec: error: ")
    assert named in line
    assert not [path for path in (root / name).rglob("*") if path.is_file() and path.name != "rank-00000.log"]


def test_a_file_that_is_put_right_runs_in_the_same_folder(
    write_conversations: Callable[..., Path], tiny_generation: Callable[..., DictConfig]
) -> None:
    cfg = tiny_generation(write_conversations([{"id": "a", "messages": "  "}]))
    with refused(InputError, found="none of 1 rows can be used"):
        memvec.generate(cfg)
    write_conversations([{"id": "a", "messages": "Ann likes tea."}])
    assert memvec.generate(cfg).counts.conversations == 1
