"""What points are coloured by: prefixes of ids, labels, steps of length."""

from __future__ import annotations

import numpy as np
import pytest

from memvec.page.groups import MOST_GROUPS, by_length, by_name, by_prefix


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
