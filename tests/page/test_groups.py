"""What points are coloured by: prefixes of ids, labels, steps of length."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memvec.page.groups import MOST_GROUPS, NOTHING, by_column, by_length, by_name, by_prefix


@pytest.mark.parametrize(
    ("ids", "groups"),
    [
        (["a/1", "a/2", "b/1", "b/2", "a/3", "b/3"], ["a", "b"]),
        (["run/x/1", "run/x/2", "run/y/1", "run/y/2"], ["run/x", "run/y"]),
        (["user-1:7", "user-1:8", "user-2:7", "user-2:8"], ["user-1", "user-2"]),
        (["m_1", "m_2", "k_1", "k_2"], ["m", "k"]),
        (["a/1", "a/2", "a/3", "plain", "bare"], ["a", "other"]),
    ],
)
def test_ids_are_grouped_by_the_shortest_telling_prefix(ids: list[str], groups: list[str]) -> None:
    colouring = by_prefix(ids)
    assert colouring is not None
    assert colouring.groups == groups
    for name, code in zip(ids, colouring.codes, strict=True):
        assert groups[code] == "other" or name.startswith(groups[code])


@pytest.mark.parametrize("ids", [["1", "2", "3"], ["a/1", "b/2", "c/3", "d/4"], ["all/1"], ["same/1", "same/2"]])
def test_ids_whose_prefix_tells_none_or_all_are_not_grouped(ids: list[str]) -> None:
    assert by_prefix(ids) is None


def test_more_groups_than_colours_share_the_last() -> None:
    labels = [f"g{n % 20}" for n in range(100)] + ["g3"] * 5
    colouring = by_name("label", labels)
    assert len(colouring.groups) == MOST_GROUPS
    assert (colouring.groups[0], colouring.groups[-1]) == ("g3", "other")
    shown = [colouring.groups[code] for code in colouring.codes]
    assert all(name in (label, "other") for name, label in zip(shown, labels, strict=True))


@pytest.mark.parametrize("lengths", [[7], [7, 7, 7], list(range(1, 100)), [1] * 50 + [500]])
def test_lengths_fall_into_steps_that_do_not_overlap(lengths: list[int]) -> None:
    colouring = by_length(np.asarray(lengths))
    assert colouring.in_steps
    spans = []
    for code, name in enumerate(colouring.groups):
        inside = np.asarray(lengths)[colouring.codes == code]
        spans += [inside.min(), inside.max()]
        assert name in (f"{inside.min()} tokens", f"{inside.min()} to {inside.max()} tokens")
    assert spans == sorted(spans)


def column(values: list[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def test_texts_and_truth_values_are_grouped_as_they_are() -> None:
    colouring = by_column("user", column(["ana", "bo", None, "ana", "bo", "ana", None]))
    assert colouring is not None
    assert (colouring.name, colouring.in_steps) == ("user", False)
    assert [colouring.groups[code] for code in colouring.codes] == ["ana", "bo", NOTHING, "ana", "bo", "ana", NOTHING]
    colouring = by_column("ok", column([True, False, True, True]))
    assert colouring is not None
    assert colouring.groups == ["True", "False"]


def test_numbers_are_grouped_in_steps_and_missing_ones_apart() -> None:
    colouring = by_column("score", column([None, 1.0, 2.0, float("nan"), 3.5]))
    assert colouring is not None
    assert colouring.in_steps
    assert [colouring.groups[code] for code in colouring.codes] == [NOTHING, "1", "2", NOTHING, "3.5"]


@pytest.mark.parametrize(
    ("kind", "days", "first"),
    [
        (pa.timestamp("us"), 100, "2024-01-01 to 2024-01-1"),
        (pa.timestamp("ns", tz="UTC"), 100, "2024-01-01 to 2024-01-1"),
        (pa.date32(), 100, "2024-01-01 to 2024-01-1"),
        (pa.timestamp("s"), 0.1, "2024-01-01 00:00 to 2024-01-01 00:"),
    ],
)
def test_points_in_time_are_grouped_in_steps(kind: pa.DataType, days: float, first: str) -> None:
    moments = [datetime(2024, 1, 1) + timedelta(days=days * n / 60) for n in range(60)]
    colouring = by_column("at", column([*moments, None], kind))
    assert colouring is not None
    assert colouring.groups[0] == NOTHING
    assert colouring.groups[1].startswith(first)
    assert len(colouring.groups) == 7


@pytest.mark.parametrize("values", [["a", "b", "c"], ["a", "a"], [["a"], ["b"]], [{"a": 1}, {"a": 2}], [b"a", b"a"]])
def test_columns_that_tell_none_apart_are_no_colours(values: list[Any]) -> None:
    assert by_column("x", column(values)) is None


def test_a_column_without_values_has_one_group() -> None:
    colouring = by_column("x", column([None, None], pa.int64()))
    assert colouring is not None
    assert colouring.groups == [NOTHING]
