"""Memory texts from a real chat server, `transformers serve`, which serves the model that also runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import memvec
from memvec.files import read_json
from memvec.generation.summary import GenerationSummary
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, read_lines, write_lines
from tests.helpers.processes import flow, free_port, journal_bytes, kill_group, start, wait_until
from tests.test_generate import MARKS, texts

pytestmark = pytest.mark.processes
ROWS = 40


@pytest.fixture(scope="module")
def base_url(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that serves the scripted model."""
    said = tmp_path_factory.mktemp("serve") / "said"
    for _ in range(3):  # another program may take the port first
        port = free_port()
        with served(scripted, port, said) as server:
            if server.poll() is None:
                yield f"http://127.0.0.1:{port}/v1"
                return
    pytest.fail(said.read_text())


@contextmanager
def served(model: Path, port: int, said: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a server and waits until it answers, or has ended."""
    executable = Path(sys.executable).with_name("transformers")
    command = [str(executable), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with said.open("w") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, text=True, env=environment)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), server)
        yield server
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "conversations.jsonl", marked(ROWS, MARKS))


def asking(data: Path, output: Path, base_url: str, model: Path, *other: str) -> list[str]:
    """Returns the overrides of a run that asks the server what the model is asked here."""
    here = [override for override in generation_overrides(data, output, model) if "generation.prompt" not in override]
    prompt = ['generation.prompt.template="Facts of {text}:"', "generation.prompt.examples=[]"]
    server = ["generation=server", f"generation.base_url={base_url}", f"generation.model={model}"]
    return [*server, *here, *prompt, "generation.concurrency=4", "writer.flush_every=2", *other]


def generated(overrides: list[str]) -> GenerationSummary:
    return memvec.generate(compose(overrides, config_name="generate"))


def outputs(folder: Path) -> list[tuple[str, str, int]]:
    """Returns what the model wrote about each window at the first attempt, and how many tokens it took."""
    lines = read_lines(folder / "raw.jsonl")
    return [(line["id"], line["text"], line["num_tokens"]) for line in lines if line["attempt"] == 1]


def test_a_real_server_writes_what_the_same_model_writes_here(
    base_url: str, scripted: Path, data: Path, tmp_path: Path
) -> None:
    asked = generated(asking(data, tmp_path / "asked", base_url, scripted))
    generated(generation_overrides(data, tmp_path / "here", scripted))
    # Of an answer the server does not send back, or does not count, the end.
    here = [(name, text) for name, text, _ in outputs(tmp_path / "here")]
    assert [(name, text) for name, text, _ in outputs(tmp_path / "asked")] == here
    assert all(0 < tokens <= 12 for _, _, tokens in outputs(tmp_path / "asked"))
    notes = read_json(tmp_path / "asked" / "manifest.json")["notes"]
    assert notes["requests"] == ROWS + asked.counts.retried + 1  # and a greeting
    assert notes["retries"] == 0
    assert notes["prompt_tokens"] > notes["completion_tokens"] > 0


def test_after_a_kill_a_real_server_is_asked_for_what_is_missing(
    base_url: str, scripted: Path, data: Path, tmp_path: Path
) -> None:
    expected = generated(asking(data, tmp_path / "expected", base_url, scripted))
    overrides = asking(data, tmp_path / "run", base_url, scripted)
    process = start(flow("generate", overrides))
    wait_until(lambda: journal_bytes(tmp_path / "run") > 2_000, process)
    assert process.poll() is None
    kill_group(process)
    summary = generated(overrides)
    assert summary.counts == expected.counts
    assert texts(tmp_path / "run") == texts(tmp_path / "expected")
    assert 0 < summary.metrics["computed_entries"] < ROWS + summary.counts.retried
