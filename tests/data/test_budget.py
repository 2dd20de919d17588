"""The search for the best budget, against rates that are known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from memvec.data.budget import choose_budget, typical_rows


def test_the_best_rate_wins_and_two_worse_ones_end_the_search() -> None:
    rates = {256: 100.0, 512: 200.0, 1024: 150.0, 2048: 190.0, 4096: 900.0}
    best, tried = choose_budget(lambda budget: 1 / rates[budget], list(rates))
    assert best == 512
    assert tried == pytest.approx({budget: rates[budget] for budget in (256, 512, 1024, 2048)})


def test_one_worse_budget_does_not_end_the_search() -> None:
    rates = {256: 100.0, 512: 90.0, 1024: 300.0}
    assert choose_budget(lambda budget: 1 / rates[budget], list(rates))[0] == 1024


def test_a_gain_within_the_noise_is_not_worth_a_larger_batch() -> None:
    rates = {256: 100.0, 512: 101.0}
    assert choose_budget(lambda budget: 1 / rates[budget], list(rates))[0] == 256


def test_nothing_larger_is_tried_than_what_does_not_fit() -> None:
    best, tried = choose_budget(lambda budget: 1 / budget if budget < 1024 else None, [256, 512, 1024, 2048])
    assert best == 512
    assert list(tried) == [256, 512, 1024]
    assert tried[1024] == 0


def test_the_smallest_budget_is_the_answer_where_none_fits() -> None:
    assert choose_budget(lambda budget: None, [256, 512]) == (256, {256: 0.0})


def test_trying_ends_when_its_time_is_up() -> None:
    def slow(budget: int) -> float:
        time.sleep(0.02)
        return 1 / budget

    best, tried = choose_budget(slow, [256, 512, 1024, 2048], most_seconds=0.01)
    assert (best, list(tried)) == (256, [256])


def test_typical_rows_have_the_length_that_halves_the_tokens() -> None:
    costs = np.asarray([1] * 50 + [10] * 10 + [50])  # 50 + 100 + 50 tokens: half of them is reached among the tens
    rows = typical_rows(costs, tokens=40)
    assert costs[rows].tolist() == [10, 10, 10, 10]
    assert len(typical_rows(costs, tokens=1)) == 1
    assert len(typical_rows(costs, tokens=10**6)) == len(costs)
