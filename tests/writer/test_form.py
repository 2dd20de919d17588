"""The form that vectors are kept in: their length, their dtype, and what it cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memvec.schema import REASON, VECTOR
from memvec.writer.form import VectorForm

INDEX = np.asarray([4, 2])


def kept(form: VectorForm, vectors: NDArray[np.float32]) -> NDArray[np.floating]:
    rows = form.rows(np.arange(len(vectors)), vectors)
    assert rows.column(REASON).null_count == len(vectors)
    numbers: NDArray[np.floating] = rows.column(VECTOR).flatten().to_numpy()
    assert numbers.dtype == form.dtype
    return numbers.reshape(vectors.shape)


@given(scale=st.floats(1e-30, 1e30), layers=st.integers(1, 3))
def test_each_layers_vector_gets_length_one(scale: float, layers: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, layers, 8)) * scale
    lengths = np.linalg.norm(kept(VectorForm(normalize=True), vectors.astype(np.float32)), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_a_vector_of_zeros_has_no_direction_and_stays() -> None:
    assert not kept(VectorForm("float16", normalize=True), np.zeros((2, 8), dtype=np.float32)).any()


def test_as_they_are_vectors_are_kept_bit_for_bit() -> None:
    vectors = np.asarray([[0.1, -0.0, 1e-45, 3.4e38]], dtype=np.float32)
    assert kept(VectorForm(), vectors).tobytes() == vectors.tobytes()


def test_bfloat16_numbers_fit_float16_exactly_within_its_range() -> None:
    exponents = 2.0 ** np.arange(-14, 16)
    vectors = (np.arange(128, 256) / 128 * exponents[:, None]).astype(np.float32)  # every bfloat16 there
    np.testing.assert_array_equal(kept(VectorForm("float16"), vectors), vectors)


@pytest.mark.parametrize("large", [65520, -1e5, 3e38])
def test_what_float16_cannot_hold_is_a_reason_and_the_rest_a_row(large: float) -> None:
    vectors = np.asarray([[[1, 2], [3, 4]], [[1, large], [3, 4]]], dtype=np.float32)
    rows = VectorForm("float16").rows(INDEX, vectors)
    assert rows.column(VECTOR).to_pylist() == [[1, 2, 3, 4], None]
    reasons = rows.column(REASON).to_pylist()
    assert reasons[0] is None
    assert reasons[1].startswith(f"its vector holds {large:.6g}, and float16 ends at 65504; ")


def test_no_rows_are_no_rows() -> None:
    assert len(VectorForm("float16", normalize=True).rows(np.arange(0), np.zeros((0, 2, 4), dtype=np.float32))) == 0
