"""Half-precision weights computed in float32: the same numbers, no memory that is not there, and the weights back."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedModel

import memvec
from memvec.model.backbone import Backbone
from memvec.model.packing import pack, unpack
from memvec.model.parity import TOLERANCE, relative_error
from memvec.model.torch_internals import has_fast_matmul, hides_tiles
from memvec.model.tuning import is_worth_measuring
from memvec.model.widening import has_room, widen, widen_where_slow
from tests.helpers.models import build_model

CPU = torch.device("cpu")
INPUT_IDS = torch.randint(3, 400, (3, 40), generator=torch.Generator().manual_seed(0))
HALF = [torch.bfloat16, torch.float16]


def states(decoder: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(input_ids=INPUT_IDS, use_cache=False).last_hidden_state


def half_decoder(family: str, dtype: torch.dtype) -> PreTrainedModel:
    return Backbone(build_model(family).get_decoder()).eval().requires_grad_(False).to(dtype).decoder


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_numbers_are_those_of_the_rounded_weights_in_float32(family: str, dtype: torch.dtype) -> None:
    decoder = half_decoder(family, dtype)
    exact = copy.deepcopy(decoder).float()
    widen(decoder)
    assert decoder.dtype == torch.float32
    torch.testing.assert_close(states(decoder), states(exact), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_cast_back_the_weights_are_bit_for_bit_what_they_were(dtype: torch.dtype) -> None:
    """As Lightning does at the beginning of every run, packed in between or not."""
    decoder = half_decoder("llama", dtype)
    before = {name: tensor.clone() for name, tensor in [*decoder.named_parameters(), *decoder.named_buffers()]}
    assert {tensor.dtype for tensor in before.values()} == {dtype, torch.float32}
    backbone = Backbone(decoder)
    with torch.inference_mode():  # as in a run
        widen(decoder)
        pack(decoder)
        assert states(decoder).dtype == torch.float32
        unpack(decoder)
    backbone.to(dtype)
    after = dict([*decoder.named_parameters(), *decoder.named_buffers()])
    assert after.keys() == before.keys()
    assert all(after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_weights_are_widened_where_their_dtype_is_slow(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    decoder = half_decoder("llama", dtype)
    with caplog.at_level(logging.INFO, logger="memvec"):
        widen_where_slow(decoder)
    assert decoder.dtype == (dtype if has_fast_matmul(dtype) else torch.float32)
    assert ("are computed in float32" in caplog.text) == (not has_fast_matmul(dtype))
    assert has_fast_matmul(torch.float32)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_fp16": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "Intel Xeon", "avx512_fp16": True, "avx512_bf16": True, "amx_bf16": True}, False),
        ({"cpu_name": "Intel Xeon", "avx512_fp16": False, "avx512_bf16": True, "amx_bf16": False}, False),  # no tiles
        ({"cpu_name": "AMD EPYC", "avx512_fp16": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "aarch64", "bf16": True}, False),
        ({}, False),
    ],
)
def test_a_processor_that_hides_its_tiles_is_told_by_the_rest(capabilities: dict[str, object], expected: bool) -> None:
    assert hides_tiles(capabilities) == expected


def test_weights_for_which_there_is_no_room_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    decoder = half_decoder("llama", torch.bfloat16)
    assert has_room(decoder)
    assert not has_room(decoder, processes=10**9)
    with caplog.at_level(logging.INFO, logger="memvec"):
        widen_where_slow(decoder, processes=10**9)
    assert decoder.dtype == torch.bfloat16
    assert ("no memory for the weights in float32" in caplog.text) == (not has_fast_matmul(torch.bfloat16))


@pytest.mark.usefixtures("measures_packing")
def test_widened_weights_can_be_packed_as_float32_can() -> None:
    decoder = half_decoder("llama", torch.bfloat16)
    widen(decoder)
    assert is_worth_measuring(decoder, computed_in=torch.float32, device=CPU)


@pytest.mark.parametrize(("tune", "rows"), [("auto", 5), ("auto", 1200), ("off", 5)])
def test_a_run_in_half_precision_says_what_it_computed_in(
    tune: str, rows: int, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    path = write_jsonl([f"she moved to town number {n} and likes it" for n in range(rows)])
    half = memvec.predict(tiny_config(path, "trainer.precision=bf16-true", f"model.tune={tune}", output="half"))
    exact = memvec.predict(tiny_config(path, output="exact"))
    is_widened = tune == "auto" and not has_fast_matmul(torch.bfloat16)
    assert half.manifest["notes"]["computed_in"] == ("float32" if is_widened else "bfloat16")
    assert half.manifest["fingerprint"]["dtype"] == "bfloat16"
    vectors = [memvec.load(run.folder.root)["vector"][:5] for run in (half, exact)]
    assert 1e-6 < relative_error(*vectors) < TOLERANCE[torch.bfloat16]


@pytest.mark.slow
@pytest.mark.usefixtures("measures_packing")
def test_a_measurement_does_not_change_half_precision(
    write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    """A query to a run, and a rank with few rows, have too little to compute for a measurement to pay."""
    texts = [f"she moved to town number {n} and likes it" for n in range(1200)]
    half = "trainer.precision=bf16-true"
    many = memvec.predict(tiny_config(write_jsonl(texts), half, output="many"))
    few = memvec.predict(tiny_config(write_jsonl(texts[:5]), half, output="few"))
    assert many.manifest["notes"]["matmul_milliseconds"]
    assert few.manifest["notes"]["matmul_milliseconds"] == {}
    vectors = [memvec.load(run.folder.root)["vector"][:5] for run in (many, few)]
    assert relative_error(*vectors) < (TOLERANCE[torch.bfloat16] if has_fast_matmul(torch.bfloat16) else 1e-5)
