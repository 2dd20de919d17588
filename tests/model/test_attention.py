"""Attention without copies of keys and values: transformers' own numbers, or a refusal."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel

from memvec.model.attention import GROUPED, grouped_attention
from memvec.model.prefix import SharedPrefix, cache_argument, compute_prefix
from memvec.model.tuning import choose_kernels
from tests.helpers.models import ARCHITECTURES, DECODER, SHARES_PREFIX, build_model


def last_hidden_state(decoder: PreTrainedModel, attention: str, prefix: SharedPrefix | None) -> torch.Tensor:
    """Runs four rows, one of them padded on the left."""
    input_ids = torch.randint(3, 400, (4, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 20 + (0 if prefix is None else len(prefix)), dtype=torch.long)
    if prefix is None:
        mask[1, :5] = 0
    decoder.set_attn_implementation(attention)
    with torch.no_grad():
        cache = None if prefix is None else prefix.expand(4)
        hidden = decoder(input_ids=input_ids, attention_mask=mask, **{cache_argument(decoder): cache}).last_hidden_state
    return hidden[:, 5:]  # what stands at the padding nobody reads


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_it_gives_the_numbers_of_eager_attention(architecture: str, with_prefix: bool) -> None:
    decoder = build_model(architecture).get_decoder()
    prefix = None
    if with_prefix:
        if architecture not in SHARES_PREFIX:
            pytest.skip("shares no prefix")
        with torch.no_grad():
            prefix = compute_prefix(decoder, torch.arange(50, 60))
        assert isinstance(prefix, SharedPrefix)
    expected = last_hidden_state(decoder, "eager", prefix)
    torch.testing.assert_close(last_hidden_state(decoder, GROUPED, prefix), expected, rtol=1e-4, atol=1e-5)


def test_it_scales_by_the_size_of_a_head_by_default() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 5, 8, generator=generator), torch.randn(2, 2, 7, 8, generator=generator)
    found, _ = grouped_attention(torch.nn.Module(), query, key, key, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_capped_logits_keep_the_models_own_attention() -> None:
    config = Gemma2Config(**DECODER, head_dim=8, attn_logit_softcapping=50.0, attn_implementation="eager")
    decoder = AutoModelForCausalLM.from_config(config).eval().get_decoder()
    input_ids = torch.arange(3, 13)[None]

    def compute() -> torch.Tensor:
        with torch.no_grad():
            return decoder(input_ids=input_ids).last_hidden_state[:, -1]

    choice = choose_kernels(
        decoder, compute, products=["default"], attentions=["eager", GROUPED], dtype=torch.float32, tokens=10
    )
    assert choice.kernels.attention == decoder.config._attn_implementation == "eager"
    assert len(choice.milliseconds) == 1
