"""Digests: of byte strings in 128 bits, and which rows are the first with theirs; of a folder's files.

In: bytes, one string a row. Out: 16 bytes a row, and for each row the first row that is equal to it, here or in another
run. Both equal ids (an error of the input) and equal prompts (computed once) are found this way: the rows themselves
never have to be in memory, and 128 bits of BLAKE2b do not collide by accident or on purpose.
"""

from __future__ import annotations

import binascii
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16


def digest(content: bytes) -> bytes:
    """Returns the 16-byte BLAKE2b digest of `content`."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def as_pairs(digests: bytes | bytearray) -> NDArray[np.uint64]:
    """Views concatenated digests of N rows as `[N, 2]` uint64."""
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def as_hex(pairs: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Returns N digests as `[N]` strings of 32 hex digits."""
    return np.frombuffer(pairs.tobytes().hex().encode(), dtype=f"S{2 * DIGEST_BYTES}")


def from_hex(digits: bytes | memoryview) -> NDArray[np.uint64]:
    """Returns the digests whose hex digits stand one after the other, as `[N, 2]` uint64.

    Raises:
        ValueError: Something else than hex digits is there, or not 32 for each digest.
    """
    return as_pairs(binascii.unhexlify(digits))


class DigestIndex:
    """Finds digests among N known ones.

    Args:
        pairs: The known ones, all different, `[N, 2]` uint64.
    """

    def __init__(self, pairs: NDArray[np.uint64]) -> None:
        self._order = np.argsort(pairs[:, 0], kind="stable")
        self._sorted = pairs[self._order]

    def find(self, pairs: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns where each of M digests stands among the known ones, `[M]` int64; -1 where it is not among them.

        Sorted by their first half alone, since numpy searches numbers far faster than pairs of them. All 128 bits are
        compared; of two known digests with one first half, which only a search for such texts would make, one is found.
        """
        if len(self._order) == 0:
            return np.full(len(pairs), -1, dtype=np.int64)
        at = np.searchsorted(self._sorted[:, 0], pairs[:, 0]).clip(max=len(self._order) - 1)
        is_known = (self._sorted[at] == pairs).all(axis=1)
        return np.where(is_known, self._order[at], -1)


def first_occurrence(pairs: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For every row, the first row that has the same digest (itself, where it is the first).

    Args:
        pairs: Digests, `[N, 2]` uint64.

    Returns:
        `[N]` int64 with `result[i] <= i`.
    """
    rows = len(pairs)
    if rows == 0:
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: equal rows stay in input order
    ordered = pairs[order]
    starts_group = np.ones(rows, dtype=bool)
    starts_group[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first_of_group = order[starts_group]
    result = np.empty(rows, dtype=np.int64)
    result[order] = first_of_group[np.cumsum(starts_group) - 1]
    return result


def folder_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """Returns a hex SHA-256 over names and content of the files that match."""
    state = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        with file.open("rb") as stream:
            state.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()};".encode())
    return state.hexdigest()
