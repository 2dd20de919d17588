"""The state that is read is the last real token's, whatever the padding holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memvec.model.pooling import last_token


@given(length=st.lists(st.integers(1, 9), min_size=1, max_size=6), dimension=st.integers(1, 5))
def test_each_row_gives_the_state_of_its_last_real_token(length: list[int], dimension: int) -> None:
    hidden = torch.randn(len(length), max(length), dimension)
    vectors = last_token(hidden, torch.tensor(length))
    assert vectors.shape == (len(length), dimension)
    for row, tokens in enumerate(length):
        assert torch.equal(vectors[row], hidden[row, tokens - 1])


def test_what_stands_in_the_padding_is_not_looked_at() -> None:
    hidden = torch.arange(24.0).reshape(2, 3, 4)
    hidden[0, 1:] = torch.nan
    vectors = last_token(hidden, torch.tensor([1, 3]))
    assert torch.equal(vectors, torch.tensor([[0.0, 1.0, 2.0, 3.0], [20.0, 21.0, 22.0, 23.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert last_token(torch.ones(2, 3, 4, dtype=dtype), torch.tensor([1, 2])).dtype == dtype


def test_a_length_beyond_the_batch_is_an_error() -> None:
    with pytest.raises(IndexError):
        last_token(torch.ones(1, 3, 4), torch.tensor([4]))
