"""Choosing matmuls by measurement: the faster that is exact, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

import memvec
from memvec.model.tuning import DEFAULT, PACKED, choose_matmuls, is_worth_measuring
from tests.helpers.models import build_model, is_packed

TEXTS = [f"she moved to town number {n} and likes it" for n in range(1200)]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("measures_packing")


@pytest.fixture
def decoder() -> PreTrainedModel:
    return build_model("llama").get_decoder()


def test_layers_that_cannot_be_packed_are_not_measured(decoder: PreTrainedModel) -> None:
    gpt2 = build_model("gpt2").get_decoder()  # its layers are transformers' Conv1D
    assert not is_worth_measuring(gpt2, computed_in=torch.float32, device=CPU)
    assert is_worth_measuring(decoder, computed_in=torch.float32, device=CPU)


def test_autocast_and_gpus_leave_nothing_to_choose(decoder: PreTrainedModel) -> None:
    assert not is_worth_measuring(decoder, computed_in=torch.bfloat16, device=CPU)
    assert not is_worth_measuring(decoder, computed_in=torch.float32, device=torch.device("cuda"))


def test_where_packing_never_paid_nothing_is_measured(
    decoder: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memvec.model.tuning.SLOWER_PACKED", {torch.backends.cpu.get_cpu_capability()})
    assert not is_worth_measuring(decoder, computed_in=torch.float32, device=CPU)


class Clock:
    """Goes on only when it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What matmuls are measured by, so that no other process makes one of them slower."""
    clock = Clock()
    monkeypatch.setattr("memvec.model.tuning.time", clock)
    return clock


@pytest.mark.parametrize("faster", [DEFAULT, PACKED])
def test_the_faster_matmuls_are_taken_and_set(decoder: PreTrainedModel, clock: Clock, faster: str) -> None:
    def compute() -> torch.Tensor:
        clock.now += 1 + (is_packed(decoder) != (faster == PACKED))
        return torch.ones(2, 3)

    choice = choose_matmuls(decoder, compute, dtype=torch.float32)
    assert choice.matmuls == faster
    assert is_packed(decoder) == (faster == PACKED)
    assert set(choice.milliseconds) == {DEFAULT, PACKED}


@pytest.mark.parametrize("fault", ["differs", "fails"])
def test_packed_weights_that_differ_or_fail_are_not_taken(decoder: PreTrainedModel, clock: Clock, fault: str) -> None:
    def compute() -> torch.Tensor:
        if not is_packed(decoder):
            clock.now += 1
            return torch.ones(2, 3)
        if fault == "fails":
            raise AttributeError("'PackedLinear' object has no attribute 'weight'")
        return torch.full((2, 3), 1.001)

    choice = choose_matmuls(decoder, compute, dtype=torch.float32)
    assert choice.matmuls == DEFAULT
    assert not is_packed(decoder)
    assert list(choice.milliseconds) == [DEFAULT]


@pytest.mark.slow
def test_a_run_notes_its_choice(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]) -> None:
    off = tiny_config(write_jsonl(TEXTS), "model.tune=off", output="off")
    assert memvec.predict(off).manifest["notes"]["matmul_milliseconds"] == {}
    tuned = tiny_config(write_jsonl(TEXTS), output="tuned")
    notes = memvec.predict(tuned).manifest["notes"]
    assert notes["matmuls"] in notes["matmul_milliseconds"]
    torch.testing.assert_close(
        memvec.load(tuned.output_dir)["vector"][:], memvec.load(off.output_dir)["vector"][:], rtol=1e-4, atol=1e-5
    )
