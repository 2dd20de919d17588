"""The progress bar counts tokens, from none to all, whatever the batches hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

import memvec
from memvec.generate import memory_stage
from memvec.run.stage import run_stage
from memvec.trainer.progress import TokenProgressBar
from tests.fixtures import TEXTS
from tests.helpers.conversations import marked
from tests.helpers.processes import arguments, finish, start

BAR = re.compile(r"Predicting:? *(\d+)%\|[^|]*\| ([\d.]+k?)/([\d.]+k?) tokens \[[\d:]+<[\d:?]+(?:, )?([^\]]*)\]")


def shown(output: str) -> list[tuple[int, str, str, str]]:
    return [(int(p), done, total, behind) for p, done, total, behind in BAR.findall(output)]


def number(count: str) -> float:
    return float(count.removesuffix("k")) * (1000 if count.endswith("k") else 1)


@pytest.mark.parametrize("prefix_cache", ["auto", "off"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_bar_goes_to_the_tokens_that_are_computed(
    batch_size: int,
    prefix_cache: str,
    write_jsonl: Callable[..., Path],
    tiny_config: Callable[..., DictConfig],
    capfd: pytest.CaptureFixture[str],
) -> None:
    cfg = tiny_config(
        write_jsonl(TEXTS),
        f"data.batch_size={batch_size}",
        f"model.prefix_cache={prefix_cache}",
        "trainer.enable_progress_bar=true",
    )
    metrics = memvec.predict(cfg).metrics
    bars = shown("".join(capfd.readouterr()))
    percents = [percent for percent, *_ in bars]
    assert percents == sorted(percents)
    percent, done, total, behind = bars[-1]
    assert (percent, done) == (100, total)
    padded = metrics["computed_tokens"] / (1 - metrics["padding_share"])
    assert number(total) == pytest.approx(padded, rel=0.01)  # the bar shows three digits
    assert re.fullmatch(r"[\d,.]+ entries/s", behind)


def test_the_bars_name_stands_apart_from_its_share(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    memvec.predict(tiny_config(write_jsonl(TEXTS), "trainer.enable_progress_bar=true"))
    assert re.search(r"Predicting:? 100%\|", "".join(capfd.readouterr()))


def test_without_a_bar_none_is_shown(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    memvec.predict(tiny_config(write_jsonl(TEXTS), "trainer.enable_progress_bar=false"))
    assert "Predicting" not in "".join(capfd.readouterr())


def test_the_bar_moves_while_a_batch_is_generated_and_ends_full(
    scripted: Path,
    write_conversations: Callable[..., Path],
    tiny_generation: Callable[..., DictConfig],
    capfd: pytest.CaptureFixture[str],
) -> None:
    cfg = tiny_generation(write_conversations(marked(4, ("",))), "trainer.enable_progress_bar=true", model=scripted)
    steps: list[int] = []

    class EveryStep(TokenProgressBar):
        def _advance(self, tokens: int) -> None:
            super()._advance(tokens)
            steps.append(self.predict_progress_bar.n)

    stage = memory_stage(cfg)
    stage.computation.trainer.callbacks[:] = [
        EveryStep() if isinstance(c, TokenProgressBar) else c for c in stage.computation.trainer.callbacks
    ]
    run_stage(stage)
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    percent, done, total, _ = shown("".join(capfd.readouterr()))[-1]
    assert (percent, done) == (100, total)


@pytest.mark.processes
def test_with_several_ranks_the_bar_says_whose_share_it_counts(
    write_jsonl: Callable[..., Path], llama: Path, tmp_path: Path
) -> None:
    command = arguments(write_jsonl(TEXTS), tmp_path / "run", llama, "trainer=ddp", "trainer.devices=2")
    command[command.index("trainer.enable_progress_bar=false")] = "trainer.enable_progress_bar=true"
    code, said = finish(start(command))
    assert code == 0, said
    assert re.search(r"Rank 0 of 2:? 100%\|", said)
