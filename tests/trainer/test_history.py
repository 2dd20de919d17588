"""The history of a run: bounded, additive over ranks, and true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import memvec
from memvec.files import read_json
from memvec.trainer.history import MOMENTS, SLICES, Timeline, combine_lengths, combine_timelines, padding_by_length
from tests.fixtures import TEXTS


@pytest.mark.parametrize(("prefix_cache", "is_padded"), [("auto", False), ("off", True)])
def test_a_runs_history_counts_what_was_computed(
    prefix_cache: str, is_padded: bool, write_jsonl: Callable[..., Path], tiny_config: Callable[..., DictConfig]
) -> None:
    cfg = tiny_config(write_jsonl(TEXTS), "data.batch_size=4", f"model.prefix_cache={prefix_cache}")
    summary = memvec.predict(cfg)
    history = read_json(summary.folder.history)
    timeline, lengths = history["timeline"], history["lengths"]
    unique = len(set(TEXTS))
    tokens = memvec.load(summary.folder.root)["num_tokens"][:]
    different = {text: int(count) for text, count in zip(TEXTS, tokens, strict=True)}
    assert sum(timeline["entries"]) == pytest.approx(unique, abs=0.1 * SLICES)
    assert sum(timeline["tokens"]) == pytest.approx(sum(different.values()), abs=0.1 * SLICES)
    assert sum(lengths["entries"]) == unique
    by_length = np.bincount([count // lengths["tokens_per_bin"] for count in different.values()])
    assert lengths["entries"] == by_length.tolist()
    padded = summary.metrics["computed_tokens"] / (1 - summary.metrics["padding_share"])
    assert (sum(lengths["padding"]) > 0) == is_padded
    assert sum(lengths["padding"]) == pytest.approx(padded - summary.metrics["computed_tokens"])
    assert sum(timeline["padding"]) == pytest.approx(sum(lengths["padding"]), abs=0.1 * SLICES)


def test_a_timeline_of_any_length_stays_small() -> None:
    timeline = Timeline(2.0)
    for batch in range(10_000):
        timeline.add(2.0 + 0.01 * (batch + 1), np.asarray([3, 5]), is_padded=True)
    seconds, entries, tokens, padding = timeline.to_json()
    assert len(seconds) <= MOMENTS + 1
    assert (seconds[0], entries[0]) == (2.0, 0)
    assert (entries[-1], tokens[-1], padding[-1]) == (20_000, 80_000, 20_000)
    assert seconds[-1] == pytest.approx(102)
    assert np.all(np.diff(seconds) > 0)


def test_ranks_add_up_slice_by_slice() -> None:
    early, late = [[0.0, 10.0], [0, 100], [0, 1000], [0, 10]], [[10.0, 20.0], [0, 300], [0, 3000], [0, 0]]
    combined = combine_timelines([early, late])
    half = SLICES // 2
    assert combined["seconds"][-1] == 20
    assert sum(combined["entries"][:half]) == pytest.approx(100, abs=SLICES * 0.05)
    assert sum(combined["entries"][half:]) == pytest.approx(300, abs=SLICES * 0.05)
    assert sum(combined["padding"]) == pytest.approx(10, abs=SLICES * 0.05)


def test_padding_is_counted_where_it_stands_and_ranks_add_up() -> None:
    lengths = np.asarray([4, 2, 4, 1, 3], dtype=np.int32)
    first = padding_by_length(lengths, [np.asarray([0, 1])], is_padded=True)
    second = padding_by_length(lengths, [np.asarray([2]), np.asarray([4, 3])], is_padded=True)
    assert first == {"tokens_per_bin": 1, "entries": [0, 0, 1, 0, 1], "padding": [0, 0, 2, 0, 0]}
    assert combine_lengths([first, second]) == {
        "tokens_per_bin": 1,
        "entries": [0, 1, 1, 1, 2],
        "padding": [0, 2, 2, 0, 0],
    }


def test_a_run_with_nothing_to_compute_has_an_empty_history() -> None:
    assert sum(combine_timelines([])["entries"]) == 0
    assert combine_lengths([]) == {"tokens_per_bin": 1, "entries": [], "padding": []}
