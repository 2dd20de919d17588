"""Digests, and the first row with each, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvec.digest import DIGEST_BYTES, DigestIndex, as_hex, as_pairs, digest, first_occurrence, from_hex


@given(st.lists(st.binary(max_size=3), max_size=40))
def test_first_occurrence_equals_brute_force(rows: list[bytes]) -> None:
    pairs = as_pairs(b"".join(map(digest, rows)))
    assert pairs.shape == (len(rows), 2)
    assert first_occurrence(pairs).tolist() == [rows.index(row) for row in rows]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40))
def test_rows_that_differ_in_half_of_the_digest_are_different(pairs: list[tuple[int, int]]) -> None:
    found = first_occurrence(np.array(pairs, dtype=np.uint64).reshape(-1, 2))
    assert found.dtype == np.int64
    assert found.tolist() == [pairs.index(pair) for pair in pairs]


def test_the_highest_bits_count() -> None:
    pairs = np.array([[2**64 - 1, 0], [2**64 - 2, 0], [0, 2**63], [2**64 - 1, 0], [0, 0], [0, 2**63]], dtype=np.uint64)
    assert first_occurrence(pairs).tolist() == [0, 1, 2, 0, 4, 2]


@given(st.lists(st.binary(max_size=2), unique=True, max_size=40), st.lists(st.binary(max_size=2), max_size=40))
def test_known_digests_are_found_where_they_stand(known: list[bytes], rows: list[bytes]) -> None:
    index = DigestIndex(as_pairs(b"".join(map(digest, known))))
    found = index.find(as_pairs(b"".join(map(digest, rows))))
    assert found.tolist() == [known.index(row) if row in known else -1 for row in rows]


def test_a_digest_with_one_half_in_common_is_not_found() -> None:
    index = DigestIndex(np.array([[5, 1], [2, 1], [2**64 - 1, 7]], dtype=np.uint64))
    asked = [[5, 2], [2**64 - 1, 7], [1, 5], [2, 1], [6, 1], [0, 0]]
    assert index.find(np.array(asked, dtype=np.uint64)).tolist() == [-1, 2, -1, 1, -1, -1]


def test_digests_in_hex_read_back_as_they_were() -> None:
    pairs = as_pairs(b"".join(map(digest, [b"a", b"b", b"c"])))
    assert [digits.decode() for digits in as_hex(pairs)] == [digest(content).hex() for content in (b"a", b"b", b"c")]
    np.testing.assert_array_equal(from_hex(as_hex(pairs).tobytes()), pairs)
    for wrong in (b"0" * 31, b"0" * 16, b" " * 32, b"g" * 32):
        with pytest.raises(ValueError):  # noqa: PT011 - numpy's or binascii's
            from_hex(wrong)


def test_pairs_view_the_digests_row_by_row() -> None:
    contents = [b"", b"a", b"\x00", "中文".encode()]
    pairs = as_pairs(bytearray(b"".join(map(digest, contents))))
    assert [row.tobytes() for row in pairs] == [digest(content) for content in contents]
    assert len({digest(content) for content in contents}) == len(contents)
    assert {len(digest(content)) for content in contents} == {DIGEST_BYTES}


def test_a_digest_is_the_same_in_every_process() -> None:
    """Journals of an earlier process are compared with it, so it may not depend on `PYTHONHASHSEED` or a version."""
    assert digest(b"memvec").hex() == "5f60db4828a7aa4915cc8b37b9c9df58"


def test_many_rows_with_few_values() -> None:
    values = np.random.default_rng(0).integers(0, 1000, size=200_000).astype(np.uint64)
    pairs = np.stack([values % 7, values], axis=1)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    assert np.array_equal(first_occurrence(pairs), first[inverse])
