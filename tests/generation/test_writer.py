"""What the model has written goes to the journal as text, with what it came to: journals of real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import memvec
from memvec.data.prepared import read_signature
from memvec.errors import ConfigError
from memvec.files import read_json
from memvec.generation.finalize import MemoryFinalizer
from memvec.generation.parser import Outcome
from memvec.generation.writer import CompletionWriter
from memvec.run.folder import RunFolder
from memvec.writer.frames import journal_files, read_frames
from tests.helpers.configs import compose
from tests.helpers.conversations import generation_overrides, marked, write_lines
from tests.helpers.refusals import refused
from tests.helpers.scripted import FAILS, NOTHING, UNDECIDED

# Drawn at so high a temperature, what is undecided comes out either way; the rest stays what it is.
RETRY = "generation.retry_temperature=200"
MEMORIES, NONE, FAILED = (outcome.value for outcome in (Outcome.MEMORIES, Outcome.NOTHING, Outcome.UNPARSEABLE))


def journal_of(cfg: DictConfig) -> tuple[RunFolder, list[list[dict[str, Any]]]]:
    """Runs until every output is in the journal, and returns its frames."""

    def stop(self: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFinalizer, "write_results", stop)
        with pytest.raises(KeyboardInterrupt):
            memvec.generate(cfg)
    folder = RunFolder(cfg.output_dir)
    files, signature = journal_files(folder.journal), read_signature(folder)
    frames = read_frames(files, rows=1000, signature=signature, is_expected=lambda batch: True, damaged=[])
    return folder, [frame.batch.to_pylist() for frame in frames]


@pytest.fixture(scope="module")
def run(
    scripted: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """A run that was stopped before its results, its frames, and all their rows."""
    root = tmp_path_factory.mktemp("writer")
    path = write_lines(root / "conversations.jsonl", marked(22, ("", NOTHING, FAILS, *[UNDECIDED] * 8)))
    overrides = generation_overrides(path, root / "run", scripted, RETRY, "writer.flush_every=4", "data.batch_size=5")
    folder, frames = journal_of(compose(overrides, config_name="generate"))
    return folder, frames, [row for frame in frames for row in frame]


@pytest.mark.slow
def test_each_output_is_in_the_journal_with_its_outcome(run: Any) -> None:
    first = {row["index"]: row for row in run[2] if row["attempt"] == 0}
    assert sorted(first) == list(range(22))
    assert first[0]["text"].startswith("- She likes ")
    assert [(first[n]["text"], first[n]["outcome"]) for n in (1, 2, 3)] == [("nil", NONE), ("#", FAILED), ("#", FAILED)]
    assert (first[0]["outcome"], first[0]["reason"]) == (MEMORIES, None)


def test_the_end_of_an_answer_is_counted_and_not_written(run: Any) -> None:
    first = {row["index"]: row for row in run[2] if row["attempt"] == 0}
    assert [first[n]["num_tokens"] for n in (0, 1, 2)] == [10, 4, 2]
    assert not any("<|" in row["text"] or row["is_cut"] for row in run[2])


def test_only_what_was_not_understood_is_attempted_again(run: Any) -> None:
    failed = sorted(row["index"] for row in run[2] if row["attempt"] == 0 and row["outcome"] == FAILED)
    again = {row["index"]: row["outcome"] for row in run[2] if row["attempt"] == 1}
    assert sorted(again) == failed == [n for n in range(22) if n % 11 >= 2]
    assert again[2] == again[13] == FAILED
    assert MEMORIES in again.values()  # with another seed, some of the undecided


def test_frames_hold_as_many_windows_as_asked_for(run: Any) -> None:
    sizes = [len(frame) for frame in run[1]]
    assert max(sizes) == 4
    assert sizes.count(4) >= len(sizes) - 2  # the last of either attempt need not be full


def test_written_tokens_are_counted_over_both_attempts(run: Any) -> None:
    folder, _, rows = run
    metrics = read_json(folder.journal / "metrics-rank-00000.json")
    assert metrics["counted"] == {"output_tokens": sum(row["num_tokens"] for row in rows)}
    assert metrics["entries"] == len(rows)


def test_an_answer_that_reaches_its_limit_is_cut(
    scripted: Path, write_conversations: Callable[..., Path], tiny_generation: Callable[..., DictConfig]
) -> None:
    path = write_conversations(marked(3, ("", NOTHING, FAILS)))
    options = ("generation.max_new_tokens=4", "generation.attempts=1")
    _, frames = journal_of(tiny_generation(path, *options, model=scripted))
    rows = sorted((row for frame in frames for row in frame), key=lambda row: row["index"])
    # The second has its end within the limit, as its last token.
    assert [(row["text"], row["is_cut"], row["outcome"]) for row in rows] == [
        ("- She l", True, FAILED),
        ("nil", False, NONE),
        ("#", False, FAILED),
    ]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [("flush_every", 0, "an integer of at least 1"), ("fsync", "never", "flush, close")]
)
def test_an_option_that_makes_no_sense_says_what_is_allowed(
    name: str, value: Any, allowed: str, tmp_path: Path
) -> None:
    with refused(ConfigError, f"writer.{name}", value, allowed=allowed):
        CompletionWriter(tmp_path, **{name: value})
