"""Memory texts from a server: the whole flow, in processes that are really killed, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memvec
from memvec.errors import ConfigError, ExtraError, Interrupted, RunFolderError, ServerError, WriterError
from memvec.files import read_json
from memvec.generation.completions import has_completions
from memvec.generation.summary import GenerationSummary
from memvec.run.folder import RunFolder
from tests.helpers.chat_server import (
    KEY,
    ChatServerDouble,
    chat_server,
    completion,
    half,
    hangs_up,
    refuses,
    replies,
)
from tests.helpers.configs import compose
from tests.helpers.conversations import marked, read_lines, write_lines
from tests.helpers.processes import assert_same, finish, flow, journal_bytes, kill_group, start, torchrun, wait_until
from tests.helpers.refusals import refused
from tests.helpers.scripted import FAILS, NOTHING, UNDECIDED
from tests.test_generate import RESULT, texts, visible

ROWS = 60
MARKS = ("", NOTHING, "", FAILS, UNDECIDED)
Done = tuple[int, str]


def overrides(data: Path, output: Path, base_url: str, *other: str) -> list[str]:
    return [
        f"data.path={data}",
        f"output_dir={output}",
        "generation=server",
        f"generation.base_url={base_url}",
        "generation.model=m",
        "generation.retries=1",
        "generation.concurrency=4",
        "writer.flush_every=2",
        "trainer.enable_progress_bar=false",
        *other,
    ]


def generated(data: Path, output: Path, base_url: str, *other: str) -> GenerationSummary:
    return memvec.generate(compose(overrides(data, output, base_url, *other), config_name="generate"))


def windows_done(output: Path) -> int:
    """Returns how many windows' first output is in the journal."""
    folder = RunFolder(output)
    rows = len(np.load(folder.first_rows))
    return int(has_completions(folder, rows, 0).sum())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations, and with what an undisturbed run over them gives."""
    root = tmp_path_factory.mktemp("server")
    write_lines(root / "conversations.jsonl", marked(ROWS, MARKS))
    with chat_server(ChatServerDouble()) as double:
        generated(root / "conversations.jsonl", root / "expected", double.base_url)
    return root


@pytest.fixture
def data(root: Path) -> Path:
    return root / "conversations.jsonl"


def test_a_run_leaves_what_a_local_one_leaves(root: Path, data: Path) -> None:
    folder = root / "expected"
    assert visible(folder) == RESULT
    assert (folder / "logs" / "rank-00000.log").exists()
    counts = read_json(folder / "manifest.json")["counts"]
    assert (counts["conversations"], counts["windows"], counts["truncated"]) == (ROWS, ROWS, 0)
    assert (counts["nothing"], counts["retried"]) == (12, 24)
    assert 12 <= counts["failed"] < 24
    assert counts["with_memories"] + counts["failed"] == 48
    first = read_lines(folder / "memories.jsonl")[0]
    assert first == {
        **{"id": "c/0-0-0", "text": "Ann has the number 0.", "conversation_id": "c/0"},
        **{"message_start": 0, "message_end": 1, "date": "day 0"},
    }
    raw = read_lines(folder / "raw.jsonl")
    assert {line["num_tokens"] for line in raw} == {10}
    assert Counter(line["attempt"] for line in raw) == {1: ROWS, 2: 24}


def test_the_manifest_counts_requests_retries_and_tokens(data: Path, tmp_path: Path) -> None:
    troubles = {"number 3.": (refuses(500), 1), "number 5.": (hangs_up, 1)}
    double = ChatServerDouble(troubles=troubles, unknown=("response_format",))
    with chat_server(double):
        summary = generated(data, tmp_path / "run", double.base_url, "data.limit=10", "generation.attempts=1")
    notes = read_json(tmp_path / "run" / "manifest.json")["notes"]
    assert (notes["requests"], notes["retries"]) == (len(double.asked), 2) == (14, 2)
    assert (notes["prompt_tokens"], notes["completion_tokens"]) == (1100, 110)
    assert notes["fields_not_taken"] == ["response_format"]
    assert summary.metrics["computed_entries"] == 10
    assert summary.metrics["output_tokens"] == 100
    assert summary.metrics["output_tokens_per_second"] > 0
    assert any("4 requests at a time" in line for line in summary.lines())
    assert summary.manifest["fingerprint"]["model"] == "m"


@pytest.mark.slow
def test_no_more_requests_than_asked_for_are_on_their_way(data: Path, tmp_path: Path) -> None:
    double = ChatServerDouble(seconds=0.05)
    with chat_server(double):
        generated(data, tmp_path / "run", double.base_url, "generation.concurrency=3")
    assert double.most_at_a_time == 3


def test_equal_windows_are_asked_about_once(tmp_path: Path) -> None:
    row = marked(1)[0]
    path = write_lines(tmp_path / "same.jsonl", [{**row, "id": f"c/{number}"} for number in range(5)])
    double = ChatServerDouble()
    with chat_server(double):
        counts = generated(path, tmp_path / "run", double.base_url).counts
    assert (counts.windows, counts.memories, double.conversations()) == (5, 10, [0])


@pytest.mark.slow
def test_whatever_happens_to_some_windows_the_others_finish(root: Path, data: Path, tmp_path: Path) -> None:
    troubles = {
        "number 0.": (refuses(400, "maximum context length is 10 tokens"), None),
        "number 2.": (half, None),
        "number 10.": (replies(completion("x", finish="content_filter")), None),
        "number 12.": (replies("<html>"), None),
        "number 20.": (refuses(503), 1),
        "number 22.": (hangs_up, 1),
    }
    with chat_server(ChatServerDouble(troubles=troubles)) as double:
        counts = generated(data, tmp_path / "run", double.base_url).counts
    expected = read_json(root / "expected" / "manifest.json")["counts"]
    assert (counts.failed, counts.with_memories) == (expected["failed"] + 4, expected["with_memories"] - 4)
    refused = {line["id"]: line["reason"] for line in read_lines(tmp_path / "run" / "failed.jsonl") if not line["text"]}
    assert set(refused) == {f"c/{number}-0" for number in (0, 2, 10, 12)}
    assert refused["c/0-0"] == "the server gave no answer: 400 maximum context length is 10 tokens"
    expected_lines = read_lines(root / "expected" / "memories.jsonl")
    kept = [line for line in expected_lines if f"{line['conversation_id']}-0" not in refused]
    assert read_lines(tmp_path / "run" / "memories.jsonl") == kept


@pytest.mark.slow
def test_a_server_that_is_back_is_asked_for_what_is_missing(root: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with chat_server(ChatServerDouble()) as double:
        gone = refuses(503, "shutting down")
        double.troubles = {f"number {number}.": (gone, None) for number in range(30, ROWS)}
        answered_greeting = threading.Event()

        def only_the_greeting_first(handler: Any) -> None:
            if answered_greeting.is_set():
                gone(handler)
            else:
                answered_greeting.set()
                replies(completion('{"memories": []}'))(handler)

        double.troubles["morning!"] = (only_the_greeting_first, None)
        found = "503 shutting down (after 1 retries)"
        advice = f"what was computed is kept: the same command with output_dir={output} resumes the run"
        with refused(ServerError, "generation.base_url", double.base_url, found=found, advice=advice):
            generated(data, output, double.base_url)
    kept = windows_done(output)
    assert 26 <= kept <= 30
    with chat_server(ChatServerDouble()) as again:  # at another address, which is no part of the fingerprint
        summary = generated(data, output, again.base_url)
    assert texts(output) == texts(root / "expected")
    assert summary.metrics["computed_entries"] == ROWS - kept + summary.counts.retried
    asked = Counter(again.conversations())
    assert len(asked) == ROWS - kept + len([n for n in range(kept) if n % 5 in (3, 4)])


def test_a_server_that_never_answered_leaves_the_folder_free(data: Path, tmp_path: Path, closed_port: int) -> None:
    with refused(ServerError, "generation.base_url", found="after 1 retries"):
        generated(data, tmp_path / "run", f"http://127.0.0.1:{closed_port}/v1", "generation.model=wrong")
    with chat_server(ChatServerDouble()) as double:
        assert generated(data, tmp_path / "run", double.base_url, "data.limit=3").counts.windows == 3


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("generation.model=n", "model was 'm', is 'n'"),
        ("generation.seed=1", "seed was 0, is 1"),
        ("generation.temperature=0.5", "temperature was 0.0, is 0.5"),
        ("generation.prompt.template='Facts of {text}'", "template was "),
        ("generation.extra_body={a: 1}", "extra_body was {}, is {'a': 1}"),
        ("data.window_tokens=99", "window_tokens was 512, is 99"),
    ],
)
def test_a_run_of_something_else_is_refused(override: str, change: str, root: Path, data: Path) -> None:
    with refused(RunFolderError, root / "expected", found=change):
        generated(data, root / "expected", "http://127.0.0.1:1/v1", override)


def test_a_finished_run_asks_nobody(root: Path, data: Path) -> None:
    expected = texts(root / "expected")
    generated(data, root / "expected", "http://127.0.0.1:1/v1")
    assert texts(root / "expected") == expected


@pytest.mark.slow
def test_windows_can_be_measured_with_a_tokenizer(llama: Path, tmp_path: Path) -> None:
    messages = [{"speaker": "Ann", "text": f"This is number {number}."} for number in range(20)]
    path = write_lines(tmp_path / "long.jsonl", [{"id": "a", "messages": messages}])
    sizes = {}
    for name, other in {"estimate": (), "tokenizer": (f"generation.tokenizer={llama}",)}.items():
        with chat_server(ChatServerDouble()) as double:
            counts = generated(path, tmp_path / name, double.base_url, "data.window_tokens=40", *other).counts
        sizes[name] = counts.windows
    assert 5 < sizes["estimate"] < sizes["tokenizer"]  # this tokenizer knows hardly a word
    with chat_server(ChatServerDouble()) as double:
        counts = generated(path, tmp_path / "whole", double.base_url, "data.window_tokens=null").counts
    assert counts.windows == 1


def test_a_program_in_a_running_loop_or_a_thread_can_generate(data: Path, tmp_path: Path) -> None:
    async def in_a_loop(base_url: str) -> int:
        return generated(data, tmp_path / "loop", base_url, "data.limit=5").counts.windows

    with chat_server(ChatServerDouble()) as double:
        assert asyncio.run(in_a_loop(double.base_url)) == 5
        with ThreadPoolExecutor(1) as pool:
            thread = pool.submit(generated, data, tmp_path / "thread", double.base_url, "data.limit=5")
        assert thread.result().counts.windows == 5


def test_a_signal_handler_of_the_program_is_put_back(data: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def interrupt() -> None:
        wait = threading.Event()
        while len(double.asked) < 10:
            wait.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    with chat_server(ChatServerDouble(seconds=0.1)) as double:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with refused(Interrupted, found="stopped by SIGINT", advice="what was computed is kept"):
            generated(data, tmp_path / "run", double.base_url)
        thread.join()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_bar_counts_windows(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(ChatServerDouble()) as double:
        generated(data, tmp_path / "run", double.base_url, "data.limit=5", "trainer.enable_progress_bar=true")
    assert "Asking: 100%" in capsys.readouterr().out.rpartition("5/5 windows")[0]


def test_a_journal_that_cannot_be_written_is_one_line(data: Path, tmp_path: Path) -> None:
    def remove(handler: Any) -> None:
        for path in (tmp_path / "run" / "journal").glob("*.frames"):
            path.unlink()
        replies(completion('{"memories": []}'))(handler)

    with (
        chat_server(ChatServerDouble(troubles={"morning!": (remove, 1)})) as double,
        refused(WriterError, found="was removed while the run was writing to it"),
    ):
        generated(data, tmp_path / "run", double.base_url)


def test_without_the_client_the_extra_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with refused(ExtraError, "generation=server", found="needs openai", advice="pip install 'memvec[server]'"):
        generated(data, tmp_path / "run", "http://127.0.0.1:1/v1")


@pytest.mark.slow
def test_vectors_of_memories_from_a_server_are_the_local_models(
    root: Path, data: Path, llama: Path, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    local = ["model=hub", f"model.name_or_path={llama}", "trainer.accelerator=cpu", "trainer.devices=1"]
    with chat_server(ChatServerDouble()) as double:
        given = [line for line in overrides(data, tmp_path / "run", double.base_url, *local) if "flush" not in line]
        summary = memvec.extract(compose(given, config_name="extract"))
    assert texts(tmp_path / "run" / "memories") == texts(root / "expected")
    assert summary.memories.counts.memories == summary.vectors.counts.entries
    cfg = tiny_config(root / "expected" / "memories.jsonl", output="alone")
    memvec.predict(cfg)
    assert_same(memvec.load(tmp_path / "run"), memvec.load(cfg.output_dir))


@pytest.fixture(scope="module")
def jobs(root: Path, llama: Path) -> dict[str, Any]:
    """Runs every process of this file, two at a time, and returns what they ended with and what was asked."""
    data = root / "conversations.jsonl"

    def disturbed(name: str, do: Callable[[Any], Done]) -> Any:
        output = root / name
        with chat_server(ChatServerDouble(seconds=0.5)) as double:
            process = start(flow("generate", overrides(data, output, double.base_url)))
            wait_until(lambda: journal_bytes(output) > 2_000, process)
            assert process.poll() is None
            return do(process)

    def killed(process: Any) -> Done:
        kill_group(process)
        return process.returncode, ""

    def signalled(number: int) -> Callable[[Any], Done]:
        def send(process: Any) -> Done:
            os.killpg(process.pid, number)
            return finish(process, seconds=60)

        return send

    def typed(name: str, *other: str, environment: dict[str, str] | None = None) -> Done:
        with chat_server(ChatServerDouble(always=refuses(401, f"Incorrect API key provided: {KEY}"))) as double:
            return finish(start(flow("generate", overrides(data, root / name, double.base_url, *other)), environment))

    def under_torchrun() -> Done:
        command = flow("generate", overrides(data, root / "torchrun", "http://127.0.0.1:1/v1"))
        return finish(start(torchrun(command, 2)))

    def two_ranks() -> Done:
        ranks = [
            "model=hub",
            f"model.name_or_path={llama}",
            "trainer.accelerator=cpu",
            "trainer=ddp",
            "trainer.devices=2",
        ]
        with chat_server(ChatServerDouble()) as double:
            given = [o for o in overrides(data, root / "ranks", double.base_url, *ranks) if "flush" not in o]
            return finish(start(flow("extract", given)))

    starts: dict[str, Callable[[], Any]] = {
        "killed": lambda: disturbed("killed", killed),
        "SIGTERM": lambda: disturbed("SIGTERM", signalled(signal.SIGTERM)),
        "SIGINT": lambda: disturbed("SIGINT", signalled(signal.SIGINT)),
        "key": lambda: typed("key", environment={"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}),
        "torchrun": under_torchrun,
        "ranks": two_ranks,
    }
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(starts, pool.map(lambda run: run(), starts.values()), strict=True))


@pytest.mark.processes
@pytest.mark.parametrize(("name", "code"), [("killed", -signal.SIGKILL), ("SIGTERM", 143), ("SIGINT", 130)])
def test_once_stopped_a_command_asks_for_what_is_missing(
    name: str, code: int, root: Path, data: Path, jobs: dict[str, Done]
) -> None:
    ended_with, said = jobs[name]
    assert ended_with == code, said
    assert "Traceback" not in said
    if name != "killed":
        assert f"memvec: stopped by {name}; what was computed is kept" in said
    kept = windows_done(root / name)
    assert 0 < kept < ROWS
    with chat_server(ChatServerDouble()) as double:
        summary = generated(data, root / name, double.base_url)
    assert texts(root / name) == texts(root / "expected")
    assert summary.manifest["counts"] == read_json(root / "expected" / "manifest.json")["counts"]
    assert summary.metrics["computed_entries"] == ROWS - kept + summary.counts.retried
    assert len(double.conversations()) == ROWS - kept + summary.counts.retried


@pytest.mark.processes
def test_a_wrong_key_is_one_line_and_stands_nowhere(root: Path, jobs: dict[str, Done]) -> None:
    code, said = jobs["key"]
    assert code == 1
    assert said.splitlines()[-1].startswith("memvec: error: generation.base_url=http://127.0.0.1:")
    assert "401 Incorrect API key provided: ***; the key is what OPENAI_API_KEY holds, which is set" in said
    assert KEY not in said
    files = [path for path in (root / "key").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["rank-00000.log"]
    assert KEY not in files[0].read_text()


@pytest.mark.processes
def test_several_processes_that_would_ask_the_same_are_refused(root: Path, jobs: dict[str, Done]) -> None:
    code, said = jobs["torchrun"]
    assert code != 0
    assert "generation=server: one process asks, and torchrun or SLURM has started 2" in said
    assert not (root / "torchrun").exists()


@pytest.mark.processes
def test_one_rank_asks_and_two_compute_the_vectors(root: Path, jobs: dict[str, Done]) -> None:
    code, said = jobs["ranks"]
    assert code == 0, said
    assert texts(root / "ranks" / "memories") == texts(root / "expected")
    assert read_json(root / "ranks" / "metrics.json")["ranks"] == 2
    assert said.count("windows    ") == said.count("vectors    ") == 1


def test_config_errors_come_before_the_folder(data: Path, tmp_path: Path) -> None:
    with refused(ConfigError, "generation.base_url", "not-an-address"):
        generated(data, tmp_path / "run", "not-an-address")
    assert not (tmp_path / "run").exists()
