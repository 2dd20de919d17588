"""Packed layers: the same vectors, the weights exactly back, and nothing packed that computes otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memvec.model.packing import PackedGatedBlock, PackedLinear, can_pack, pack, unpack
from tests.helpers.models import ARCHITECTURES, build_model, is_packed

INPUT_IDS = torch.randint(3, 400, (3, 40), generator=torch.Generator().manual_seed(0))
ROUNDING = {torch.float32: 5e-6, torch.bfloat16: 0.05}


def decoder_of(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return build_model(family).get_decoder().to(dtype).eval().requires_grad_(False)


def states(decoder: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(input_ids=INPUT_IDS, use_cache=False).last_hidden_state.float()


def needs_packing(decoder: nn.Module, dtype: torch.dtype) -> None:
    if not can_pack(decoder, dtype=dtype, device=torch.device("cpu")):
        pytest.skip(f"this processor does not multiply packed {dtype} weights, or the model has none")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_packing_changes_no_vector_and_unpacking_no_weight(family: str) -> None:
    decoder = decoder_of(family)
    needs_packing(decoder, torch.float32)
    weights = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    expected = states(decoder)
    pack(decoder)
    assert is_packed(decoder)
    assert float((states(decoder) - expected).norm() / expected.norm()) < ROUNDING[torch.float32]
    unpack(decoder)
    assert not is_packed(decoder)
    assert decoder.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in decoder.state_dict().items())
    torch.testing.assert_close(states(decoder), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_gated_blocks_are_fused_in_both_dtypes(family: str) -> None:
    for dtype, rounding in ROUNDING.items():
        decoder = decoder_of(family, dtype)
        needs_packing(decoder, dtype)
        expected = states(decoder)
        pack(decoder)
        assert sum(isinstance(module, PackedGatedBlock) for module in decoder.modules()) == 3
        assert float((states(decoder) - expected).norm() / expected.norm()) < rounding


def test_biases_are_added_and_any_number_of_rows_works() -> None:
    linear = nn.Linear(24, 40).requires_grad_(False)
    needs_packing(linear, torch.float32)
    packed = PackedLinear(linear)
    for shape in [(24,), (0, 24), (1, 24), (2, 3, 24)]:
        x = torch.randn(shape)
        torch.testing.assert_close(packed(x), linear(x))
    x, factor = torch.randn(5, 24), torch.randn(5, 40)
    torch.testing.assert_close(packed.times(x, factor), linear(x) * factor)
    torch.testing.assert_close(packed.activated(x, ("swish", "")), nn.functional.silu(linear(x)))


def test_layers_with_hooks_or_of_other_kinds_stay() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    needs_packing(model, torch.float32)
    model[2].register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.randn(2, 4)
    expected = model(x)
    pack(model)
    assert [type(module).__name__ for module in model] == ["PackedLinear", "Scaled", "Linear"]
    torch.testing.assert_close(model(x), expected)


def test_doubles_gpus_and_other_layers_cannot_be_packed() -> None:
    linear, cpu = nn.Linear(4, 4), torch.device("cpu")
    assert not can_pack(linear, dtype=torch.float64, device=cpu)
    assert not can_pack(linear, dtype=torch.float32, device=torch.device("cuda"))
    assert not can_pack(nn.Embedding(4, 4), dtype=torch.float32, device=cpu)
