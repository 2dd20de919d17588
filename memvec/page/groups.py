"""What the points of a map are coloured by: what their ids begin with, their length, their cluster.

In: n entries. Out: for each way a few named groups, and which of them each entry is in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_GROUPS = 12
STEPS = 6
SEPARATORS = "/:#|.-_"
DEEPEST = 3
OTHER = "other"


@dataclass(frozen=True)
class Colouring:
    """One way to colour the points.

    Args:
        name: What is told apart.
        groups: Their names, at most 12.
        codes: Which group each entry is in, `[n]` uint8.
        in_steps: Whether the groups stand in an order, from little to much.
    """

    name: str
    groups: list[str]
    codes: NDArray[np.uint8]
    in_steps: bool = False


def by_prefix(ids: Sequence[str]) -> Colouring | None:
    """Groups entries by what their ids begin with, up to a separator; None where that tells none apart.

    The first separator and the smallest depth are taken that give more than one group, and fewer than half as many
    groups as ids: `conv-26/1/Ann/0` is in `conv-26`, and where all are, in `conv-26/1`.
    """
    for separator in SEPARATORS:
        for depth in range(1, DEEPEST + 1):
            heads = [separator.join(name.split(separator)[:depth]) if separator in name else OTHER for name in ids]
            if 1 < len(set(heads)) <= len(ids) / 2:
                return by_name("id prefix", heads)
    return None


def by_name(name: str, labels: Sequence[str]) -> Colouring:
    """Groups entries by a label; all but the most frequent share the last group."""
    common = [label for label, _ in Counter(labels).most_common() if label != OTHER]
    shown = common if len(common) <= MOST_GROUPS and OTHER not in labels else [*common[: MOST_GROUPS - 1], OTHER]
    place = {label: code for code, label in enumerate(shown)}
    return Colouring(name, shown, np.asarray([place.get(label, len(shown) - 1) for label in labels], dtype=np.uint8))


def by_length(lengths: NDArray[np.integer]) -> Colouring:
    """Groups entries by their number of tokens, into steps of about equally many entries."""
    inner = np.unique(np.quantile(lengths, np.linspace(0, 1, STEPS + 1)[1:-1], method="nearest"))
    codes = np.searchsorted(inner, lengths, side="right")
    present, codes = np.unique(codes, return_inverse=True)
    spans = [(lengths[codes == code].min(), lengths[codes == code].max()) for code in range(len(present))]
    names = [f"{low} tokens" if low == high else f"{low} to {high} tokens" for low, high in spans]
    return Colouring("length", names, codes.astype(np.uint8), in_steps=True)
