"""Choosing kernels by measurement: the fastest that is exact, and nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

import memvec
from memvec.model.tuning import Kernels, candidates, choose_kernels, get_products, set_products, use_kernels
from tests.models import build_model

TEXTS = [f"she moved to town number {n} and likes it" for n in range(120)]


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    before = get_products()
    yield
    set_products(before)


@pytest.fixture
def decoder() -> PreTrainedModel:
    return build_model("llama").get_decoder()


def test_float32_on_a_cpu_has_both_attentions_and_both_routes_the_default_first() -> None:
    choices = candidates("sdpa", dtype=torch.float32, device=torch.device("cpu"))
    assert choices[0] == Kernels("sdpa", "none")
    assert {choice.attention for choice in choices} == {"sdpa", "eager"}
    assert {choice.products for choice in choices} == {"none", "bf16"}


def test_half_precision_has_no_float32_route() -> None:
    choices = candidates("eager", dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {choice.products for choice in choices} == {"none"}
    assert choices[0].attention == "eager"


def test_on_a_gpu_and_with_other_kernels_nothing_is_measured() -> None:
    assert len(candidates("sdpa", dtype=torch.float32, device=torch.device("cuda"))) == 1
    other = candidates("flash_attention_2", dtype=torch.bfloat16, device=torch.device("cpu"))
    assert [choice.attention for choice in other] == ["flash_attention_2"]


def test_the_faster_choice_is_taken_and_set(decoder: PreTrainedModel) -> None:
    def compute() -> torch.Tensor:
        if decoder.config._attn_implementation == "sdpa":
            time.sleep(0.05)
        return torch.ones(2, 3)

    best, milliseconds = choose_kernels(decoder, compute, [Kernels("sdpa"), Kernels("eager")], dtype=torch.float32)
    assert best == Kernels("eager")
    assert decoder.config._attn_implementation == "eager"
    assert set(milliseconds) == {str(Kernels("sdpa")), str(Kernels("eager"))}


def test_a_faster_choice_whose_vectors_differ_is_not_taken(decoder: PreTrainedModel) -> None:
    def compute() -> torch.Tensor:
        if decoder.config._attn_implementation == "sdpa":
            time.sleep(0.02)
            return torch.ones(2, 3)
        return torch.full((2, 3), 1.001)

    best, milliseconds = choose_kernels(decoder, compute, [Kernels("sdpa"), Kernels("eager")], dtype=torch.float32)
    assert best == Kernels("sdpa")
    assert decoder.config._attn_implementation == "sdpa"
    assert list(milliseconds) == [str(Kernels("sdpa"))]


@pytest.mark.parametrize("kernels", candidates("sdpa", dtype=torch.float32, device=torch.device("cpu")), ids=str)
def test_every_choice_gives_the_same_vectors(kernels: Kernels, decoder: PreTrainedModel) -> None:
    input_ids = torch.randint(3, 400, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = decoder(input_ids=input_ids).last_hidden_state
        use_kernels(decoder, kernels)
        torch.testing.assert_close(decoder(input_ids=input_ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_a_run_notes_its_choice_and_puts_the_process_back(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    before = get_products()
    off = tiny_config(write_jsonl(TEXTS), "data.batch_size=2", "model.tune=off", output="off")
    assert memvec.predict(off).manifest["notes"]["kernel_milliseconds"] == {}
    tuned = tiny_config(write_jsonl(TEXTS), "data.batch_size=2", output="tuned")
    notes = memvec.predict(tuned).manifest["notes"]
    assert notes["kernels"] in notes["kernel_milliseconds"]
    assert get_products() == before
    torch.testing.assert_close(
        memvec.load(tuned.output_dir)["vector"][:], memvec.load(off.output_dir)["vector"][:], rtol=1e-4, atol=1e-5
    )


def test_an_attention_the_user_chose_stays(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "data.batch_size=2", "model.attn_implementation=eager")
    notes = memvec.predict(cfg).manifest["notes"]
    assert notes["kernel_milliseconds"]
    assert all(name.startswith("eager attention") for name in notes["kernel_milliseconds"])
