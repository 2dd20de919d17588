"""What the points of a map are coloured by: what their ids begin with, their length, their cluster, columns.

In: n entries. Out: for each way a few named groups, and which of them each entry is in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MOST_GROUPS = 12
STEPS = 6
SEPARATORS = "/:#|.-_"
DEEPEST = 3
OTHER = "other"
NOTHING = "no value"
LONGEST_LABEL = 48
SECONDS_OF_A_DAY = 86_400


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
            if _tell_some_apart(heads):
                return by_name("id prefix", heads)
    return None


def by_column(name: str, values: pa.ChunkedArray) -> Colouring | None:
    """Groups entries by a column that was kept; None where that tells none apart, and for lists and objects.

    Args:
        name: Of the column.
        values: Its values, n: numbers and points in time are grouped in steps, texts and truth values as they are.
    """
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        labels = [NOTHING if value is None else _label(value) for value in values.to_pylist()]
        return by_name(name, labels) if _tell_some_apart(labels) else None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _by_moment(name, values)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return by_steps(name, _numbers(values), shown=lambda number: f"{number:.6g}")
    return None


def _by_moment(name: str, values: pa.ChunkedArray) -> Colouring:
    zone = values.type.tz if pa.types.is_timestamp(values.type) else None
    seconds = _numbers(values.cast(pa.timestamp("s", tz=zone), safe=False).cast(pa.int64()))
    there = seconds[np.isfinite(seconds)]
    spread = np.ptp(there) if len(there) else 0
    unit = "D" if spread > STEPS * SECONDS_OF_A_DAY else "m"

    def shown(moment: float) -> str:
        return str(np.datetime64(int(moment), "s").astype(f"datetime64[{unit}]")).replace("T", " ")

    return by_steps(name, seconds, shown=shown)


def _numbers(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns values as numbers, `[n]`, with NaN for null."""
    return np.asarray(values.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy())


def _label(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


def _tell_some_apart(labels: Sequence[str]) -> bool:
    return 1 < len(set(labels)) <= len(labels) / 2


def by_name(name: str, labels: Sequence[str]) -> Colouring:
    """Groups entries by a label; all but the most frequent share the last group."""
    common = [label for label, _ in Counter(labels).most_common() if label != OTHER]
    shown = common if len(common) <= MOST_GROUPS and OTHER not in labels else [*common[: MOST_GROUPS - 1], OTHER]
    place = {label: code for code, label in enumerate(shown)}
    return Colouring(name, shown, np.asarray([place.get(label, len(shown) - 1) for label in labels], dtype=np.uint8))


def by_length(lengths: NDArray[np.integer]) -> Colouring:
    """Groups entries by their number of tokens."""
    colouring = by_steps("length", lengths.astype(np.float64), shown=lambda length: f"{length:.0f}")
    return replace(colouring, groups=[f"{group} tokens" for group in colouring.groups])


def by_steps(name: str, numbers: NDArray[np.float64], *, shown: Callable[[float], str]) -> Colouring:
    """Groups entries by a number, into steps of about equally many; those without one are a group before the first.

    Args:
        name: What is told apart.
        numbers: `[n]`; NaN of an entry without one.
        shown: Returns a number in words.
    """
    there = np.isfinite(numbers)
    steps = np.full(len(numbers), -1)
    if there.any():
        inner = np.unique(np.quantile(numbers[there], np.linspace(0, 1, STEPS + 1)[1:-1], method="nearest"))
        steps[there] = np.searchsorted(inner, numbers[there], side="right")
    present, codes = np.unique(steps, return_inverse=True)
    groups = [_span(numbers[steps == step], shown) for step in present]
    return Colouring(name, groups, codes.astype(np.uint8), in_steps=True)


def _span(numbers: NDArray[np.float64], shown: Callable[[float], str]) -> str:
    """Returns from where to where a step goes, in words."""
    if not np.isfinite(numbers).all():
        return NOTHING
    low, high = shown(numbers.min()), shown(numbers.max())
    return low if low == high else f"{low} to {high}"
