"""Choosing kernels by measurement: the fastest that is exact, and nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

import memvec
from memvec.data.collator import Batch
from memvec.model.attention import GROUPED
from memvec.model.extractor import Extractor
from memvec.model.packing import is_packed
from memvec.model.speedups import Speedups
from memvec.model.tuning import (
    Choice,
    Kernels,
    attention_choices,
    choose_kernels,
    product_choices,
    use_kernels,
)
from tests.helpers.models import build_model, load_backbone

TEXTS = [f"she moved to town number {n} and likes it" for n in range(1200)]


@pytest.fixture
def decoder() -> PreTrainedModel:
    return build_model("llama").get_decoder()


def test_on_a_cpu_there_are_several_attentions_and_products_the_default_first(decoder: PreTrainedModel) -> None:
    cpu = torch.device("cpu")
    assert attention_choices("sdpa", device=cpu) == ["sdpa", GROUPED]
    assert attention_choices("eager", device=cpu) == ["eager", "sdpa", GROUPED]
    products = product_choices(decoder, computed_in=torch.float32, device=cpu)
    assert products[0] == "default"
    assert len(products) == 2


def test_layers_that_cannot_be_packed_leave_the_default_alone() -> None:
    gpt2 = build_model("gpt2").get_decoder()  # its layers are transformers' Conv1D
    assert product_choices(gpt2, computed_in=torch.float32, device=torch.device("cpu")) == ["default"]


def test_autocast_gpus_and_other_attention_kernels_leave_nothing_to_choose(decoder: PreTrainedModel) -> None:
    assert product_choices(decoder, computed_in=torch.bfloat16, device=torch.device("cpu")) == ["default"]
    assert product_choices(decoder, computed_in=torch.float32, device=torch.device("cuda")) == ["default"]
    assert attention_choices("sdpa", device=torch.device("cuda")) == ["sdpa"]
    assert attention_choices("flash_attention_2", device=torch.device("cpu")) == ["flash_attention_2"]


def choose(decoder: PreTrainedModel, compute: Callable[[], torch.Tensor]) -> Choice:
    return choose_kernels(
        decoder,
        compute,
        products=["default", "packed"],
        attentions=["sdpa", "eager"],
        dtype=torch.float32,
        tokens=10,
    )


def test_the_fastest_choice_is_taken_and_set(decoder: PreTrainedModel) -> None:
    def compute() -> torch.Tensor:
        time.sleep(0.02 * (decoder.config._attn_implementation == "sdpa") + 0.02 * (not is_packed(decoder)))
        return torch.ones(2, 3)

    choice = choose(decoder, compute)
    assert choice.kernels == Kernels("eager", "packed")
    assert decoder.config._attn_implementation == "eager"
    assert is_packed(decoder)
    assert set(choice.milliseconds) == {str(Kernels("sdpa")), str(Kernels("sdpa", "packed")), str(choice.kernels)}


@pytest.mark.parametrize("fault", ["differs", "fails"])
def test_a_faster_choice_that_differs_or_fails_is_not_taken(decoder: PreTrainedModel, fault: str) -> None:
    def compute() -> torch.Tensor:
        if decoder.config._attn_implementation == "sdpa" and not is_packed(decoder):
            time.sleep(0.02)
            return torch.ones(2, 3)
        if fault == "fails":
            raise AttributeError("'PackedLinear' object has no attribute 'weight'")
        return torch.full((2, 3), 1.001)

    choice = choose(decoder, compute)
    assert choice.kernels == Kernels("sdpa")
    assert decoder.config._attn_implementation == "sdpa"
    assert not is_packed(decoder)
    assert list(choice.milliseconds) == [str(Kernels("sdpa"))]


@pytest.mark.parametrize("products", ["default", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", GROUPED])
def test_every_choice_gives_the_same_vectors(attention: str, products: str, decoder: PreTrainedModel) -> None:
    input_ids = torch.randint(3, 400, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = decoder(input_ids=input_ids).last_hidden_state
        use_kernels(decoder, Kernels(attention, products))
        torch.testing.assert_close(decoder(input_ids=input_ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_a_run_notes_its_choice(write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]) -> None:
    off = tiny_config(write_jsonl(TEXTS), "model.tune=off", output="off")
    assert memvec.predict(off).manifest["notes"]["kernel_milliseconds"] == {}
    tuned = tiny_config(write_jsonl(TEXTS), output="tuned")
    notes = memvec.predict(tuned).manifest["notes"]
    assert notes["kernels"] in notes["kernel_milliseconds"]
    torch.testing.assert_close(
        memvec.load(tuned.output_dir)["vector"][:], memvec.load(off.output_dir)["vector"][:], rtol=1e-4, atol=1e-5
    )


def test_an_attention_the_user_chose_stays(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "model.attn_implementation=eager")
    notes = memvec.predict(cfg).manifest["notes"]
    assert notes["kernel_milliseconds"]
    assert all(name.startswith("eager attention") for name in notes["kernel_milliseconds"])


def test_rows_much_longer_than_those_it_was_measured_on_take_the_default_attention(llama: Path) -> None:
    extractor = Extractor(load_backbone(llama), speedups=Speedups(), computed_in=torch.float32)
    extractor.kernels = Choice(Kernels("eager"), {}, default_attention="sdpa", longest=20)
    used = []
    for width in (40, 20, 21, 3):
        batch = Batch(
            index=torch.arange(2),
            input_ids=torch.full((2, width), 7),
            length=torch.tensor([width, width - 1]),
            prefix_length=0,
        )
        with torch.no_grad():
            extractor(batch)
        used.append(extractor.decoder.config._attn_implementation)
    assert used == ["sdpa", "eager", "sdpa", "eager"]
