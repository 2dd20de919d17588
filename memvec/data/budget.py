"""Finds how many tokens a batch should hold, by trying (`data.max_tokens=auto`).

In: the costs of the rows, and a function that runs a batch of some rows. Out: the budget with the best throughput.

How: budgets are doubled from the smallest, each on rows of the length at which half of all tokens lie, until one does
not fit into memory, throughput has fallen twice, or the time for trying is up. Why not a formula: on a processor the
best budget is what the caches hold, on a GPU what fills it, and both differ by model and dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

TOKENS_ON_CPU = 1024
TOKENS_ON_ACCELERATOR = 32_768
# Doubled from the first up to the last; the best lies well inside on every processor and card it was tried on.
BUDGETS_ON_CPU = (256, 512, 1024, 2048, 4096, 8192)
BUDGETS_ON_ACCELERATOR = (4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144)
MOST_SECONDS = 5.0
# A larger budget has to gain this much: it holds more memory and flushes later.
SMALLEST_GAIN = 1.02


def typical_rows(costs: NDArray[np.integer], *, tokens: int) -> NDArray[np.int64]:
    """Returns rows of the length at which half of all tokens lie, as many as hold about `tokens`.

    Args:
        costs: Tokens a row costs, `[N]`, N at least 1.
        tokens: How many tokens the rows should have, padding included.

    Returns:
        Positions in `costs`, at least one, in order of cost.
    """
    order = np.argsort(costs, kind="stable")
    reached = costs[order].cumsum(dtype=np.int64)
    middle = int(np.searchsorted(reached, reached[-1] / 2))
    count = min(len(order), max(1, tokens // int(costs[order[middle]])))
    start = min(max(0, middle - count // 2), len(order) - count)
    return order[start : start + count]


def choose_budget(
    seconds: Callable[[int], float | None], budgets: Sequence[int], *, most_seconds: float = MOST_SECONDS
) -> tuple[int, dict[int, float]]:
    """Tries budgets, smallest first.

    Args:
        seconds: Seconds a token takes in a batch of so many tokens; None where such a batch does not fit into memory.
        budgets: What to try, rising.
        most_seconds: When to stop trying.

    Returns:
        The best budget, and tokens per second of each that was tried; 0 where it did not fit.
    """
    start = time.perf_counter()
    rates: dict[int, float] = {}
    best = budgets[0]
    worse = 0
    for budget in budgets:
        taken = seconds(budget)
        rates[budget] = 1 / taken if taken else 0.0
        if taken is None:
            break
        if budget == best or rates[budget] >= SMALLEST_GAIN * rates[best]:
            best, worse = budget, 0
        else:
            worse += 1
        if worse == 2 or time.perf_counter() - start > most_seconds:
            break
    return best, rates
