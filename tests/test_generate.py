"""The whole flow, from a file of conversations to memory texts, in one program."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import memvec
from memvec.data.reader import read_file
from memvec.errors import ConfigError, RunFolderError
from memvec.files import read_json
from memvec.generation.summary import GenerationSummary
from memvec.sweep.table import shown_table, sweep_rows
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, read_lines, write_lines
from tests.helpers.refusals import refused
from tests.helpers.scripted import FAILS, NOTHING, SILENT, UNDECIDED

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]

RESULT = [
    *("failed.jsonl", "manifest.json", "memories.jsonl", "memories.parquet", "metrics.json"),
    *("raw.jsonl", "rejected.jsonl"),
]
TEXTS = ["failed.jsonl", "memories.jsonl", "raw.jsonl"]
DRAWN = ("generation.temperature=1.0", "generation.top_p=1.0")
MARKS = ("", NOTHING, "", FAILS, UNDECIDED)


def visible(folder: Path | str) -> list[str]:
    """Returns what a run left, less its logs."""
    return sorted(path.name for path in Path(folder).iterdir() if path.name != "logs")


def texts(folder: Path | str) -> dict[str, str]:
    """Returns the files that hold what the model wrote, in words."""
    return {name: (Path(folder) / name).read_text(encoding="utf-8") for name in TEXTS}


@pytest.fixture(scope="module")
def run(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DictConfig, GenerationSummary]:
    """A finished run over conversations of every kind, two of which cannot be used."""
    root = tmp_path_factory.mktemp("generate")
    rows = [*marked(20, MARKS), {"id": "bad", "messages": [{"text": "no speaker"}]}, {"id": "c/0", "messages": "again"}]
    path = write_lines(root / "conversations.jsonl", rows)
    overrides = generation_overrides(path, root / "run", scripted, "generation.retry_temperature=200")
    cfg = compose(overrides, config_name="generate")
    return cfg, memvec.generate(cfg)


def test_a_finished_folder_holds_the_result_and_nothing_else(run: Any) -> None:
    assert visible(run[0].output_dir) == RESULT


def test_asked_for_its_vectors_it_says_what_makes_them(run: Any) -> None:
    with refused(
        RunFolderError,
        "run",
        found="holds memory texts",
        advice=re.compile(r"memvec\.predict data\.path=.*memories\.parquet"),
    ):
        memvec.load(run[0].output_dir)


def test_memories_nothing_and_failures_are_counted_apart(run: Any) -> None:
    cfg, summary = run
    counts = summary.counts
    assert summary.counts == counts
    raw = read_lines(Path(cfg.output_dir) / "raw.jsonl")
    last = {line["conversation_id"]: line["outcome"] for line in raw}
    found = [list(last.values()).count(outcome) for outcome in ("memories", "nothing", "unparseable")]
    assert [counts.with_memories, counts.nothing, counts.failed] == found
    assert (counts.conversations, counts.rejected, counts.windows, counts.nothing) == (20, 2, 20, 4)
    assert counts.retried == sum(line["attempt"] == 2 for line in raw) == 8
    assert 8 < counts.memories < 12  # at the second attempt some of the undecided are understood
    lines = summary.lines()
    assert lines[0] == f"memories   {counts.memories} of 20 conversations"
    assert lines[1].startswith(
        f"windows    20: {found[0]} with memories, 4 with nothing to remember, {found[2]} not und"
    )
    assert f"rejected   2 conversations (why: {cfg.output_dir}/rejected.jsonl)" in lines
    assert lines[-1] == f"file       {cfg.output_dir}/memories.parquet"


def test_each_memory_says_where_and_when_it_is_from(run: Any) -> None:
    found = read_lines(Path(run[0].output_dir) / "memories.jsonl")
    assert found[0] == {
        **{"id": "c/0-0-0", "text": found[0]["text"], "conversation_id": "c/0"},
        **{"message_start": 0, "message_end": 1, "date": "day 0"},
    }
    assert re.fullmatch(r"She likes [a-zBM]+\d[a-z]\.", found[0]["text"])
    numbers = [int(line["conversation_id"].removeprefix("c/")) for line in found]
    assert numbers == sorted(numbers)
    assert [line["date"] for line in found] == [f"day {number}" for number in numbers]


def test_conversations_that_cannot_be_used_are_named(run: Any) -> None:
    cfg, _ = run
    bad, again = read_lines(Path(cfg.output_dir) / "rejected.jsonl")
    assert (bad["row"], bad["id"], bad["file"]) == (21, "bad", cfg.data.path)
    assert "message 0 has no 'speaker' or 'role'" in bad["reason"]
    assert (again["row"], again["id"]) == (22, "c/0")
    assert "duplicate id" in again["reason"]


def test_metrics_and_manifest_say_what_was_done(run: Any) -> None:
    cfg, summary = run
    metrics = read_json(Path(cfg.output_dir) / "metrics.json")
    assert metrics["computed_entries"] == 20 + summary.counts.retried
    assert metrics["output_tokens_per_second"] > 0
    manifest = read_json(Path(cfg.output_dir) / "manifest.json")
    assert {"input", "model", "template", "window_tokens", "overlap", "seed", "max_new_tokens"} <= set(
        manifest["fingerprint"]
    )
    assert manifest["counts"]["memories"] == summary.counts.memories


@pytest.mark.parametrize("name", [*TEXTS, "memories.parquet"])
def test_any_of_its_files_is_input_of_predict(name: str, run: Any, tiny_config: Configure) -> None:
    path = Path(run[0].output_dir) / name
    rows = [(name, text) for _, name, text in read_file(path, text_column="text", id_column="id")]
    cfg = tiny_config(path)
    memvec.predict(cfg)
    dataset = memvec.load(cfg.output_dir)
    assert list(zip(dataset["id"][:], dataset["text"][:], strict=True)) == rows


def test_the_same_command_again_does_nothing_and_says_so(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    cfg, first = run
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.output_dir).iterdir()}
    with caplog.at_level(logging.INFO, logger="memvec"):
        assert memvec.generate(cfg).lines() == first.lines()
    assert "complete already; nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in Path(cfg.output_dir).iterdir()} == before


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("generation.seed=1", "seed was 0, is 1"),
        ("generation.temperature=0.5", "temperature was 0.0, is 0.5"),
        ("generation.max_new_tokens=13", "max_new_tokens was 12, is 13"),
        ("generation.attempts=1", "attempts was 2, is 1"),
        ('generation.prompt.examples=[{conversation: "A: Hi", answer: NONE}]', "examples was [], is [{"),
        ("data.window_tokens=99", "window_tokens was 100, is 99"),
        ("data.overlap=1", "overlap was 2, is 1"),
        ("data.date_column=null", "date_column was 'auto', is None"),
        ("trainer.precision=bf16-true", "dtype was 'float32', is 'bfloat16'"),
    ],
)
def test_a_run_of_something_else_is_refused_naming_what_differs(
    override: str, change: str, run: Any, scripted: Path
) -> None:
    cfg, _ = run
    other = [
        *generation_overrides(cfg.data.path, cfg.output_dir, scripted, "generation.retry_temperature=200"),
        override,
    ]
    with refused(RunFolderError, "run", found=change):
        memvec.generate(compose(other, config_name="generate"))


def test_resume_false_refuses_a_folder_that_holds_a_run(run: Any) -> None:
    cfg = run[0].copy()
    cfg.resume = False
    with refused(RunFolderError, "run", found="resume=false"):
        memvec.generate(cfg)


def test_a_sweep_of_generation_has_its_table(run: Any) -> None:
    (row,) = sweep_rows(Path(run[0].output_dir).parent)
    assert (row["job"], row["batch_size"], row["prompt"]) == ("run", 256, None)
    assert "prompt" not in shown_table([row])[0]


@pytest.mark.parametrize("trainer", ["fsdp", "tensor_parallel"])
def test_a_trainer_that_shards_weights_is_refused_at_once(
    trainer: str, write_conversations: Write, tiny_generation: Configure
) -> None:
    cfg = tiny_generation(write_conversations(), f"trainer={trainer}", "trainer.devices=2")
    with refused(ConfigError, "trainer", found="generation does not shard weights", allowed="default, ddp"):
        memvec.generate(cfg)
    assert not Path(cfg.output_dir).exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), DRAWN], ids=["greedy", "drawn"])
def test_the_size_of_batches_does_not_change_the_result(
    how: tuple[str, ...], scripted: Path, write_conversations: Write, tiny_generation: Configure
) -> None:
    path = write_conversations(marked(20, MARKS))
    both = [tiny_generation(path, *how, f"data.batch_size={n}", model=scripted, output=f"run-{n}") for n in (1, 64)]
    for cfg in both:
        memvec.generate(cfg)
    assert texts(both[0].output_dir) == texts(both[1].output_dir)
    memories = [line["text"] for line in read_lines(Path(both[0].output_dir) / "memories.jsonl")]
    assert (len(set(memories)) > 5) == bool(how)


def test_one_attempt_leaves_what_was_not_understood_as_it_is(
    scripted: Path, write_conversations: Write, tiny_generation: Configure
) -> None:
    cfg = tiny_generation(write_conversations(marked(4, (FAILS, ""))), "generation.attempts=1", model=scripted)
    counts = memvec.generate(cfg).counts
    assert (counts.failed, counts.retried, counts.memories) == (2, 0, 2)
    assert [line["attempt"] for line in read_lines(Path(cfg.output_dir) / "raw.jsonl")] == [1] * 4


def test_a_model_that_says_nothing_at_all_ends_the_run(
    scripted: Path, write_conversations: Write, tiny_generation: Configure
) -> None:
    cfg = tiny_generation(write_conversations(marked(3, (SILENT,))), model=scripted)
    counts = memvec.generate(cfg).counts
    assert (counts.failed, counts.retried, counts.memories) == (3, 3, 0)
    assert {line["reason"] for line in read_lines(Path(cfg.output_dir) / "failed.jsonl")} == {"the output is empty"}


@pytest.mark.parametrize("language", ["facts_en", "facts_zh"])
def test_the_sample_runs_in_either_language_with_the_examples(language: str, scripted: Path, tmp_path: Path) -> None:
    overrides = [f"output_dir={tmp_path / 'run'}", "model=hub", f"model.name_or_path={scripted}", "data.limit=4"]
    quiet = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"]
    summary = memvec.generate(compose([f"generation={language}", *overrides, *quiet], config_name="generate"))
    counts = summary.counts
    assert counts.conversations == 4
    assert counts.with_memories + counts.nothing + counts.failed == counts.windows >= 4
    examples = summary.manifest["fingerprint"]["examples"]
    assert examples[0]["answer"] == {"facts_en": "NONE", "facts_zh": "无"}[language]
    assert summary.manifest["notes"]["prefix_tokens"] > 300  # request and examples, which are computed once
