"""Half-precision weights computed in float32: the same numbers, no memory that is not there, and the weights back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedModel

import memvec
from memvec.model.packing import can_pack
from memvec.model.parity import TOLERANCE, relative_error
from memvec.model.tuning import Choice, Kernels, product_choices, restore, use_kernels
from memvec.model.widening import can_widen, hold_in, multiplies
from tests.models import build_model

CPU = torch.device("cpu")
INPUT_IDS = torch.randint(3, 400, (3, 40), generator=torch.Generator().manual_seed(0))
HALF = [torch.bfloat16, torch.float16]


def states(decoder: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(input_ids=INPUT_IDS, use_cache=False).last_hidden_state


def half_decoder(family: str, dtype: torch.dtype) -> PreTrainedModel:
    decoder = build_model(family).get_decoder().eval().requires_grad_(False)
    hold_in(decoder, dtype)
    return decoder


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_numbers_are_those_of_the_rounded_weights_in_float32(family: str, dtype: torch.dtype) -> None:
    decoder = half_decoder(family, dtype)
    exact = copy.deepcopy(decoder).float()
    use_kernels(decoder, Kernels("sdpa", "float32"), loaded_in=dtype)
    torch.testing.assert_close(states(decoder), states(exact), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_the_weights_come_back_bit_for_bit_and_buffers_stay(dtype: torch.dtype) -> None:
    decoder = half_decoder("llama", dtype)
    before = {name: tensor.clone() for name, tensor in [*decoder.named_parameters(), *decoder.named_buffers()]}
    assert {tensor.dtype for tensor in before.values()} == {dtype, torch.float32}
    with torch.inference_mode():  # as in a run
        use_kernels(decoder, Kernels("sdpa", "float32"), loaded_in=dtype)
        assert states(decoder).dtype == torch.float32
        restore(decoder, Choice(Kernels("sdpa", "float32"), {}, "sdpa", longest=10, loaded_in=dtype))
    after = dict([*decoder.named_parameters(), *decoder.named_buffers()])
    assert after.keys() == before.keys()
    assert all(after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]) for name in before)


def test_it_is_tried_where_the_processor_lacks_the_dtype() -> None:
    for dtype in HALF:
        decoder = half_decoder("llama", dtype)
        tried = product_choices(decoder, computed_in=dtype, device=CPU)
        packs = can_pack(decoder, dtype=dtype, device=CPU)
        assert tried == ["default", *(["packed"] if packs else [] if multiplies(dtype) else ["float32"])]
    assert multiplies(torch.float32)
    assert "float32" not in product_choices(half_decoder("llama", torch.float32), computed_in=torch.float32, device=CPU)


def test_weights_for_which_there_is_no_room_stay_as_they_are() -> None:
    decoder = half_decoder("llama", torch.bfloat16)
    assert can_widen(decoder)
    assert not can_widen(decoder, processes=10**9)
    assert "float32" not in product_choices(decoder, computed_in=torch.bfloat16, device=CPU, processes=10**9)


def test_a_run_in_half_precision_tries_it_and_gives_vectors_within_its_tolerance(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    path = write_jsonl([f"she moved to town number {n} and likes it" for n in range(1200)])
    half = memvec.predict(tiny_config(path, "trainer.precision=bf16-true", output="half"))
    tried = half.manifest["notes"]["kernel_milliseconds"]
    assert any("float32 products" in kernels for kernels in tried) == (not multiplies(torch.bfloat16))
    exact = memvec.predict(tiny_config(path, output="exact"))
    vectors = [memvec.load(run.folder.root)["vector"][:] for run in (half, exact)]
    assert relative_error(*vectors) < TOLERANCE[torch.bfloat16]
    assert half.manifest["fingerprint"]["dtype"] == "bfloat16"
