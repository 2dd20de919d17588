"""Which decode steps are recorded, when one is recorded anew, and what happens where none can be.

Here a step is computed each time, over the same buffers as a graph; `tests/gpu` replays graphs. That answers are those
of the library is in `test_decoding.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from memvec.generation import decoding, replay
from memvec.generation.decoding import write_answers
from memvec.generation.replay import RecordedStep, StepReplay
from memvec.generation.sampling import Sampling
from tests.generation.test_decoding import ENDS, ROOM, batch_of, prompts_of, written
from tests.helpers.families import build_family
from tests.helpers.models import build_model

GREEDY = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)


@torch.inference_mode()
def generate(model: PreTrainedModel, lengths: list[int]) -> list[list[int]]:
    prompts = prompts_of(lengths)
    batch = batch_of(prompts, model)
    width = batch.input_ids.shape[1]
    return [row[width:].tolist() for row in batch.generate(model, GREEDY)]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step that is recorded has."""
    rows: list[int] = []

    def record(forward: Any, name: str, kwargs: Mapping[str, Any]) -> RecordedStep:
        rows.append(len(kwargs["input_ids"]))
        return RecordedStep(forward, name, kwargs)

    monkeypatch.setattr(replay, "RecordedStep", record)
    return rows


def test_a_step_is_recorded_once_for_a_batch(recorded: list[int]) -> None:
    model = build_model("llama")
    expected = [generate(model, lengths) for lengths in ([9, 4, 7], [9, 4, 7], [3, 8])]
    with StepReplay(model) as steps:
        found = [generate(model, lengths) for lengths in ([9, 4, 7], [9, 4, 7], [3, 8])]
    assert steps.has_recorded
    assert found == expected
    assert recorded == [3, 3, 2]  # of each batch, though one may lie where another lay
    assert "forward" not in vars(model)


@pytest.mark.parametrize("family", ["mistral", "lfm2", "bloom", "gpt_neo", "qwen2_5_vl"])
def test_what_cannot_be_recorded_runs_as_it_is(family: str) -> None:
    """Windows, states, positions out of a mask, masks of its own, positions in three dimensions."""
    model = build_family(family)
    expected = generate(model, [9, 4, 7])
    with StepReplay(model) as steps:
        assert generate(model, [9, 4, 7]) == expected
    assert not steps.has_recorded


def test_other_attention_than_sdpa_is_not_recorded() -> None:
    model = build_model("llama")
    model.set_attn_implementation("eager")  # which adds a mask, and so cannot take one of booleans
    with StepReplay(model) as steps:
        generate(model, [9, 4])
    assert not steps.has_recorded


def test_rows_that_stay_when_they_have_ended_write_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOKENS_IN_A_CHUNK", 2)
    monkeypatch.setattr(decoding, "MOST_STAYING_WHERE_REPLAYED", 0.0)  # none leaves
    model, prompts = build_model("llama"), prompts_of([30, 5, 17, 17, 9])
    for repeated, ends, most in ((24, ENDS, ROOM), (2, [], 80)):
        monkeypatch.setattr(decoding, "REPEATED_TOKENS", repeated)
        options: dict[str, Any] = {"sampling": Sampling(), "seeds": [0] * 5, "end_token_ids": ends}
        with torch.inference_mode():
            expected = write_answers(model, batch_of(prompts, model), **options, max_new_tokens=most)
            batch = batch_of(prompts, model)
            found = write_answers(model, batch, **options, max_new_tokens=most, replay=StepReplay(model))
        assert written(found) == written(expected)
        assert len({len(answer) for answer in written(found)}) > 1


def test_what_has_no_room_left_is_not_replayed() -> None:
    model = build_model("llama")
    config = GenerationConfig(max_new_tokens=ROOM + 5, do_sample=False, pad_token_id=0)
    expected = batch_of(prompts_of([9, 4]), model).generate(model, config).tolist()
    with StepReplay(model) as steps:
        assert batch_of(prompts_of([9, 4]), model).generate(model, config).tolist() == expected
    assert steps.has_recorded


def test_a_step_that_cannot_be_recorded_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fail(self: RecordedStep) -> None:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(RecordedStep, "_record", fail)
    model = build_model("llama")
    expected = generate(model, [9, 4, 7])
    steps = StepReplay(model)
    for _ in range(3):
        with steps:
            assert generate(model, [9, 4, 7]) == expected
    assert tried == [1]
    assert not steps.has_recorded


def test_rows_leave_once_a_quarter_has_finished(recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOKENS_IN_A_CHUNK", 2)
    model, prompts = build_model("llama"), prompts_of([8] * 8)
    with torch.inference_mode():
        free = write_answers(
            model, batch_of(prompts, model), sampling=Sampling(), seeds=[0] * 8, end_token_ids=[], max_new_tokens=12
        )
        # The first row ends alone, then two more: three of eight are more than a quarter.
        ends = [int(free[0, 1]), int(free[1, 5]), int(free[2, 5])]
        options = {"sampling": Sampling(), "seeds": [0] * 8, "end_token_ids": ends, "max_new_tokens": 12}
        expected = write_answers(model, batch_of(prompts, model), **options)
        found = write_answers(model, batch_of(prompts, model), **options, replay=StepReplay(model))
    assert written(found) == written(expected)
    lengths = sorted(map(len, written(found)))
    assert lengths[0] < lengths[-1]
    assert recorded[0] == 8
    assert len(recorded) > 1
    assert all(after <= 0.75 * before for before, after in pairwise(recorded))
