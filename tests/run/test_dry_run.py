"""A plan of a run: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.data.ranks import RankPlan
from memvec.errors import ConfigError
from memvec.run.dry_run import DryRun, plan_run
from tests.helpers.processes import arguments, finish, random_texts, start
from tests.helpers.refusals import refused

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]
PLAN = ["dry_run=true", "data.max_tokens=256"]


@pytest.fixture
def texts(write_jsonl: Write) -> Path:
    """Texts of which two are equal, and a row that cannot be used."""
    return write_jsonl([*random_texts(99), random_texts(1)[0], " "])


def test_the_plan_is_that_of_the_run(texts: Path, tiny_config: Configure) -> None:
    plan = plan_run(tiny_config(texts, *PLAN))
    summary = memvec.predict(tiny_config(texts, PLAN[1]))
    (rank,) = plan.ranks
    assert (plan.entries, plan.rejected) == (summary.counts.entries, summary.counts.rejected) == (100, 1)
    assert rank.rows == summary.counts.unique == 99
    assert rank.tokens == summary.metrics["computed_tokens"]
    assert 1 - rank.tokens / rank.padded_tokens == pytest.approx(summary.metrics["padding_share"])
    assert plan.prefix_length == summary.manifest["notes"]["prefix_tokens"] > 0


def test_the_time_is_that_of_the_slowest_rank(texts: Path, tiny_config: Configure) -> None:
    plan = plan_run(tiny_config(texts, *PLAN, "trainer=ddp", "trainer.devices=3"))
    assert plan.tokens_per_second is not None
    assert plan.tokens_per_second > 0
    assert plan.seconds == max(rank.padded_tokens for rank in plan.ranks) / plan.tokens_per_second
    assert set(plan.seconds_to_start) == {"read and tokenise", "load and probe the model"}
    assert all(seconds > 0 for seconds in plan.seconds_to_start.values())


@pytest.mark.parametrize(
    ("overrides", "ranks", "is_measured"),
    [
        (["trainer=ddp", "trainer.devices=4", "trainer.num_nodes=3"], 12, True),
        (["trainer=fsdp", "trainer.devices=4", "trainer.num_nodes=3"], 12, False),
        (["trainer=tensor_parallel", "trainer.devices=4", "trainer.num_nodes=3"], 3, False),
        (["trainer=tensor_parallel", "trainer.devices=4", "trainer.strategy.data_parallel_size=2"], 2, False),
        (["trainer=fsdp", "trainer.devices=4", "model.prefix_cache=off"], 4, False),
    ],
)
def test_every_rank_is_planned_though_it_is_not_here(
    overrides: list[str], ranks: int, is_measured: bool, texts: Path, tiny_config: Configure
) -> None:
    plan = plan_run(tiny_config(texts, *PLAN, *overrides))
    assert len(plan.ranks) == ranks
    assert sum(rank.rows for rank in plan.ranks) == 99
    assert (plan.tokens_per_second is not None) == is_measured
    assert (plan.prefix_length > 0) == ("model.prefix_cache=off" not in overrides)


def test_lines_show_the_first_ranks_and_all_in_sum() -> None:
    many = DryRun(40, 2, 5, [RankPlan(2, 1, 100, 125)] * 18 + [RankPlan(4, 2, 200, 250)] * 2, {"load": 1.25}, 50.0, {})
    assert many.lines()[:4] == [
        "entries    40 (44 different), 2 rejected",
        "tokens     2,200 to compute; a shared prefix of 5 is computed once",
        "batches    22 over 20 ranks, 20.0% padding",
        "balance    1.818 (largest rank over the mean)",
    ]
    assert len(many.lines()) == 4 + 1 + 16 + 1 + 2
    assert many.lines()[-2] == "start      load 1.2 s"
    assert many.lines()[-1] == "predict    about 5 s at 50 of these tokens/s, 0.8 entries/s a rank"
    alone = DryRun(2, 0, 5, [RankPlan(2, 1, 100, 125)], {"load": 1.25}, 50.0, {})
    assert alone.lines()[2] == "batches    1 over 1 rank, 20.0% padding"


@pytest.mark.processes
def test_the_command_prints_the_plan_and_leaves_nothing(texts: Path, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, said = finish(start(arguments(texts, folder, llama, *PLAN, "trainer=ddp", "trainer.devices=2")))
    assert code == 0, said
    for beginning in ("entries    100 (99 different), 1 rejected", "batches ", "balance    1.0", "predict    about "):
        assert beginning in said
    assert [line.split()[0] for line in said.splitlines() if line.strip().startswith(("0 ", "1 "))] == ["0", "1"]
    assert not folder.exists()


def test_a_plan_leaves_a_run_in_the_same_folder_alone(texts: Path, tiny_config: Configure) -> None:
    cfg = tiny_config(texts)
    memvec.predict(cfg)
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.output_dir).rglob("*")}
    plan_run(tiny_config(texts, "prompt=raw", *PLAN))
    assert {path: path.stat().st_mtime_ns for path in Path(cfg.output_dir).rglob("*")} == before


def test_predict_asked_for_a_plan_says_what_makes_it(texts: Path, tiny_config: Configure) -> None:
    with refused(ConfigError, "dry_run", True, found="memvec.run.dry_run.plan_run"):
        memvec.predict(tiny_config(texts, *PLAN))


def test_what_is_wrong_with_the_input_is_found_by_a_plan_too(tiny_config: Configure, write_jsonl: Write) -> None:
    path = write_jsonl(["fine"])
    path.write_text(path.read_text() + json.dumps({"id": 1})[:-1])
    with refused(memvec.InputError, "memories.jsonl, line 2"):
        plan_run(tiny_config(path, *PLAN))
