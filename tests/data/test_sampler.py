"""The plan of batches: every row once, within limits, longest first, and the ranks in balance."""

from __future__ import annotations

import heapq
import random
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import BatchSampler

from memvec.data.cutting import cut_batches
from memvec.data.grouping import group_rows, rows_with_prefix
from memvec.data.ranks import RankPlan, _deal, balance, plan_ranks, rank_rows
from memvec.data.sampler import LengthGroupedBatchSampler
from tests.helpers.processes import SLOWNESS

Group = tuple[NDArray[np.int64], NDArray[np.int32]]

lengths = st.lists(st.integers(1, 60), max_size=80)
worlds = st.integers(1, 100)
budgets = st.one_of(st.none(), st.integers(1, 200))


def locomo_like_lengths(rows: int, seed: int = 0) -> NDArray[np.int32]:
    """LoCoMo's observations: mostly 15 to 45 tokens, a few far longer."""
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(3.3, 0.35, size=rows), 8, 400).astype(np.int32)


def lengths_to_2000(rows: int) -> NDArray[np.int32]:
    """Every length from 1 to 2,000 tokens, equally often."""
    return np.random.default_rng(0).integers(1, 2001, size=rows).astype(np.int32)


def two_groups(first: list[int], second: list[int]) -> list[Group]:
    """Row numbers of two groups interleave, as rows with and without the shared prefix do."""
    numbers = random.Random(1).sample(range(10 * (len(first) + len(second)) + 1), len(first) + len(second))
    return [
        (np.array(numbers[: len(first)], dtype=np.int64), np.array(first, dtype=np.int32)),
        (np.array(numbers[len(first) :], dtype=np.int64), np.array(second, dtype=np.int32)),
    ]


def plan(groups: list[Group], *, batch_size: int = 8, max_tokens: int | None = 100, rank: int = 0, world_size: int = 1):
    return LengthGroupedBatchSampler(
        groups, batch_size=batch_size, max_tokens=max_tokens, rank=rank, world_size=world_size
    )


def naive_loads(loads: list[int], costs: list[int]) -> list[int]:
    """Longest processing time first as a textbook has it: a heap, one row at a time, ties to the lowest rank."""
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for cost in sorted(costs, reverse=True):
        load, rank = heapq.heappop(heap)
        heapq.heappush(heap, (load + cost, rank))
    return [load for load, _ in sorted(heap, key=lambda entry: entry[1])]


@given(first=lengths, second=lengths, world_size=worlds, batch_size=st.integers(1, 20), max_tokens=budgets)
def test_every_row_runs_on_one_rank_once(
    first: list[int], second: list[int], world_size: int, batch_size: int, max_tokens: int | None
) -> None:
    groups = two_groups(first, second)
    ranks = [
        plan(groups, batch_size=batch_size, max_tokens=max_tokens, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [row for sampler in ranks for batch in sampler for row in batch.tolist()]
    assert sorted(seen) == sorted(groups[0][0].tolist() + groups[1][0].tolist())
    assert sum(sampler.rows for sampler in ranks) == len(seen)
    assert all(len(batch) for sampler in ranks for batch in sampler)


@given(first=lengths, second=lengths, batch_size=st.integers(1, 20), max_tokens=budgets, world_size=st.integers(1, 4))
def test_batches_keep_to_both_limits_and_to_one_group(
    first: list[int], second: list[int], batch_size: int, max_tokens: int | None, world_size: int
) -> None:
    groups = two_groups(first, second)
    cost = {row: tokens for rows, costs in groups for row, tokens in zip(rows.tolist(), costs.tolist(), strict=True)}
    group = {row: number for number, (rows, _) in enumerate(groups) for row in rows.tolist()}
    for rank in range(world_size):
        sampler = plan(groups, batch_size=batch_size, max_tokens=max_tokens, rank=rank, world_size=world_size)
        order: list[tuple[int, int]] = []
        for batch in (batch.tolist() for batch in sampler):
            assert len(batch) <= batch_size
            padded = len(batch) * max(cost[row] for row in batch)
            assert max_tokens is None or padded <= max_tokens or len(batch) == 1
            assert len({group[row] for row in batch}) == 1
            order += [(group[row], -cost[row]) for row in batch]
        assert order == sorted(order)  # one group after the other, and longest first within each


@given(first=lengths, second=lengths, batch_size=st.integers(1, 20), max_tokens=budgets, world_size=st.integers(1, 4))
def test_token_counts_equal_brute_force(
    first: list[int], second: list[int], batch_size: int, max_tokens: int | None, world_size: int
) -> None:
    groups = two_groups(first, second)
    cost = {row: tokens for rows, costs in groups for row, tokens in zip(rows.tolist(), costs.tolist(), strict=True)}
    for rank in range(world_size):
        sampler = plan(groups, batch_size=batch_size, max_tokens=max_tokens, rank=rank, world_size=world_size)
        batches = [[cost[row] for row in batch.tolist()] for batch in sampler]
        total, padded = sum(map(sum, batches)), sum(len(batch) * max(batch) for batch in batches)
        assert (sampler.total_tokens, sampler.padded_tokens) == (total, padded)
        assert sampler.padding_share == pytest.approx((padded - total) / padded if padded else 0.0)
        assert len(sampler) == len(batches)


def test_a_batch_takes_as_many_rows_as_the_limits_allow() -> None:
    costs = np.array([60, 20, 20, 20, 20, 20, 16, 16, 16, 16, 16], dtype=np.int32)
    assert cut_batches(costs, batch_size=4, max_tokens=40).tolist() == [0, 1, 3, 5, 7, 9, 11]
    assert cut_batches(costs, batch_size=4, max_tokens=None).tolist() == [0, 1, 5, 9, 11]
    assert cut_batches(costs[:0], batch_size=4, max_tokens=40).tolist() == [0]


@given(costs=st.lists(st.integers(1, 60), max_size=40), batch_size=st.integers(1, 9), max_tokens=budgets)
def test_rows_without_padding_fill_batches_to_the_limits(
    costs: list[int], batch_size: int, max_tokens: int | None
) -> None:
    array = np.array(sorted(costs, reverse=True), dtype=np.int32)
    cut = cut_batches(array, batch_size=batch_size, max_tokens=max_tokens, is_padded=False).tolist()
    assert (cut[0], cut[-1]) == (0, len(costs))
    for start, end in pairwise(cut):
        tokens = int(array[start:end].sum())
        assert end - start == 1 or max_tokens is None or tokens <= max_tokens
        is_full = end - start == batch_size or end == len(costs)
        assert is_full or (max_tokens is not None and tokens + int(array[end]) > max_tokens)


@given(costs=st.lists(st.integers(1, 2000), min_size=1, max_size=80))
def test_a_batch_never_holds_more_padding_than_a_quarter(costs: list[int]) -> None:
    array = np.array(sorted(costs, reverse=True), dtype=np.int32)
    batches = np.split(array, cut_batches(array, batch_size=1024, max_tokens=None)[1:-1])
    assert all(batch.min() >= 0.75 * batch.max() for batch in batches)
    assert len(batches) <= 1 + np.log(2000) / np.log(4 / 3)  # and so there are few of them, however the lengths lie


def test_a_row_longer_than_the_budget_is_alone() -> None:
    costs = np.array([300, 200, 40, 40], dtype=np.int32)
    batches = [batch.tolist() for batch in plan([(np.arange(4), costs)], batch_size=8, max_tokens=100)]
    assert batches == [[0], [1], [2, 3]]


@given(first=lengths, second=lengths, world_size=st.integers(1, 8))
def test_the_plan_is_a_function_of_its_arguments(first: list[int], second: list[int], world_size: int) -> None:
    """Every rank computes the plan on its own: a difference would lose rows."""
    groups = two_groups(first, second)
    again = [(rows.copy(), costs.copy()) for rows, costs in groups]
    one, other = (plan(found, rank=world_size - 1, world_size=world_size) for found in (groups, again))
    assert [batch.tolist() for batch in one] == [batch.tolist() for batch in other]
    assert [batch.tolist() for batch in one] == [batch.tolist() for batch in one]  # a second pass over the same sampler
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(groups, again, strict=True))


def test_rows_of_equal_cost_stay_in_order() -> None:
    assert rank_rows(np.array([3, 5, 3, 5, 3]), rank=0, world_size=1).tolist() == [1, 3, 0, 2, 4]
    assert rank_rows(np.array([3, 5, 3, 5, 3]), rank=0, world_size=2).tolist() == [1, 0, 2]
    assert rank_rows(np.array([3, 5, 3, 5, 3]), rank=1, world_size=2).tolist() == [3, 4]
    costs = np.random.default_rng(0).integers(1, 4, size=5000)
    assert rank_rows(costs, rank=0, world_size=1).tolist() == sorted(range(5000), key=lambda row: -costs[row])


@pytest.mark.parametrize("world_size", [1, 3])
def test_no_rows_at_all_are_no_batches(world_size: int) -> None:
    nothing = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32))
    sampler = plan([nothing, nothing], rank=world_size - 1, world_size=world_size)
    assert (len(sampler), list(sampler), sampler.rows) == (0, [], 0)
    assert (sampler.total_tokens, sampler.padded_tokens, sampler.padding_share) == (0, 0, 0.0)


@given(loads=st.lists(st.integers(0, 500), min_size=1, max_size=40), cost=st.integers(1, 60), count=st.integers(1, 200))
def test_dealing_equal_rows_at_once_equals_dealing_one_by_one(loads: list[int], cost: int, count: int) -> None:
    dealt = _deal(np.array(loads, dtype=np.int64), cost, count)
    assert int(dealt.sum()) == count
    assert (np.array(loads) + dealt * cost).tolist() == naive_loads(loads, [cost] * count)


@given(costs=lengths, world_size=st.integers(1, 30))
def test_loads_equal_longest_processing_time_first(costs: list[int], world_size: int) -> None:
    array = np.array(costs, dtype=np.int32)
    shares = [rank_rows(array, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [int(array[share].sum()) for share in shares] == naive_loads([0] * world_size, costs)


@pytest.mark.parametrize("max_tokens", [1024, 32_768])
@pytest.mark.parametrize("rows", [2541, 100_000])
def test_eight_ranks_share_memory_texts_evenly(rows: int, max_tokens: int) -> None:
    plans = plan_ranks([locomo_like_lengths(rows)], batch_size=1024, max_tokens=max_tokens, world_size=8)
    assert balance([rank.tokens for rank in plans]) <= 1.01
    assert balance([rank.padded_tokens for rank in plans]) <= 1.01


@pytest.mark.slow
@pytest.mark.timeout(300 * SLOWNESS)  # it takes 0.3 to 3 s; a plan that goes row by row takes many minutes
@pytest.mark.parametrize(
    ("draw", "max_tokens"),
    [(locomo_like_lengths, 1024), (locomo_like_lengths, 32_768), (lengths_to_2000, 32_768)],
)
def test_a_thousand_ranks_share_ten_million_rows_evenly(
    draw: Callable[[int], NDArray[np.int32]], max_tokens: int
) -> None:
    lengths = draw(10_000_000)
    plans = plan_ranks([lengths], batch_size=1024, max_tokens=max_tokens, world_size=1024)
    assert balance([rank.padded_tokens for rank in plans]) <= 1.01
    assert sum(rank.rows for rank in plans) == len(lengths)
    assert sum(rank.tokens for rank in plans) == int(lengths.sum(dtype=np.int64))

    tracemalloc.start()
    rows = rank_rows(lengths, rank=511, world_size=1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * len(lengths)  # bytes
    assert int(lengths[rows].sum()) == plans[511].tokens


@given(first=lengths, second=lengths, world_size=worlds, batch_size=st.integers(1, 20), max_tokens=budgets)
def test_the_plan_in_numbers_is_what_the_samplers_yield(
    first: list[int], second: list[int], world_size: int, batch_size: int, max_tokens: int | None
) -> None:
    groups = two_groups(first, second)
    plans = plan_ranks(
        [costs for _, costs in groups], batch_size=batch_size, max_tokens=max_tokens, world_size=world_size
    )
    for rank in {0, world_size // 2, world_size - 1}:
        sampler = plan(groups, batch_size=batch_size, max_tokens=max_tokens, rank=rank, world_size=world_size)
        found = RankPlan(sampler.rows, len(sampler), sampler.total_tokens, sampler.padded_tokens)
        assert plans[rank] == found


def test_balance_is_the_largest_load_over_the_mean() -> None:
    assert balance([10, 10, 10]) == 1
    assert balance([30, 0, 0]) == 3
    assert balance([0, 0]) == 1


def test_ranks_in_step_yield_equally_many_batches() -> None:
    groups = [(np.array([7, 3, 9]), np.array([50, 20, 30], dtype=np.int32))]
    samplers = [plan(groups, max_tokens=30, rank=rank, world_size=4) for rank in range(4)]
    most = max(map(len, samplers))
    assert {len(sampler) for sampler in samplers} == {0, 1}
    for rank, alone in enumerate(samplers):
        sampler = LengthGroupedBatchSampler(
            groups, batch_size=8, max_tokens=30, rank=rank, world_size=4, batches_in_step=most
        )
        batches = [batch.tolist() for batch in sampler]
        assert len(sampler) == len(batches) == most
        assert (sampler.rows, sampler.padded_tokens) == (alone.rows, alone.padded_tokens)
        own = [batch for number, batch in enumerate(batches) if not sampler.is_dummy(number)]
        assert own == [batch.tolist() for batch in alone]
        assert [batch for number, batch in enumerate(batches) if sampler.is_dummy(number)] in ([], [[3]])


def test_costs_of_any_integer_type_give_the_same_plan() -> None:
    costs = [1, 200, 3, 200, 50, 7]
    plans = [rank_rows(np.array(costs, dtype=kind), rank=1, world_size=2).tolist() for kind in ("u1", "i2", "i4", "i8")]
    assert plans == [plans[0]] * 4


def test_lightning_leaves_the_sampler_alone() -> None:
    """Lightning rebuilds what is a BatchSampler or has its attributes, and fails."""
    sampler = plan([(np.arange(3), np.array([3, 2, 1], dtype=np.int32))])
    assert not isinstance(sampler, BatchSampler | torch.utils.data.Sampler)
    assert not (hasattr(sampler, "batch_size") and hasattr(sampler, "drop_last"))
    assert "total_tokens" in vars(sampler)  # seen through Lightning's wrapper as an instance attribute only


def test_batches_are_views_and_not_lists() -> None:
    sampler = plan([(np.arange(100), np.full(100, 10, dtype=np.int32))], batch_size=10)
    assert all(batch.base is not None and batch.dtype == np.int64 for batch in sampler)


# --- groups


lengths_of_rows = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), min_size=1, max_size=40)


@given(
    lengths_of_rows, st.integers(0, 12), st.lists(st.integers(1, 60), max_size=2, unique=True).map(sorted), st.data()
)
def test_rows_beside_a_boundary_share_nothing(
    both: list[tuple[int, int]], prefix_length: int, boundaries: list[int], data: st.DataObject
) -> None:
    lengths = np.array([length for length, _ in both])
    shared = np.array([min(count, length - 1) for length, count in both])
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(both) - 1)))), dtype=np.int64)
    groups = group_rows(rows, lengths, shared, prefix_length=prefix_length, boundaries=boundaries)
    assert sorted(np.concatenate(groups).tolist()) == rows.tolist()

    def side(length: int) -> int:
        return sum(length > boundary for boundary in boundaries)

    for group in groups:
        assert len({side(length) for length in lengths[group].tolist()}) <= 1
    with_prefix = groups[0]
    assert (shared[with_prefix] >= prefix_length).all()
    assert all(side(length) == side(prefix_length) for length in lengths[with_prefix].tolist())
    of_all = rows_with_prefix(lengths, shared, prefix_length, boundaries=boundaries)
    assert set(rows[of_all[rows]].tolist()) == set(with_prefix.tolist())


def test_a_row_as_long_as_the_boundary_is_before_it() -> None:
    lengths, shared = np.array([15, 16, 17, 18]), np.full(4, 5)
    groups = group_rows(np.arange(4), lengths, shared, prefix_length=5, boundaries=(16,))
    assert [group.tolist() for group in groups] == [[0, 1], [], [2, 3]]
    groups = group_rows(np.arange(4), lengths, shared, prefix_length=0, boundaries=(16,))
    assert [group.tolist() for group in groups] == [[], [0, 1], [2, 3]]
