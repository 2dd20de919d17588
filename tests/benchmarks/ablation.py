"""memvec with one of its choices switched off and the others on: what each is worth (`compare --ablate`).

In: a choice's name. Out: how a contestant runs without it: overrides of the configuration where there is an option,
else the function or class that takes the choice, replaced in the contestant's own process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import memvec.data.plan
import memvec.data.prepared
import memvec.model.extractor
from memvec.data.cutting import RowIndices
from memvec.data.sampler import LengthGroupedBatchSampler


def _nothing() -> None:
    """Replaces nothing."""


@dataclass(frozen=True)
class Ablation:
    """One choice switched off.

    Args:
        label: What the table calls it.
        overrides: Of the configuration.
        replace: Replaces in this process what takes the choice.
    """

    label: str
    overrides: tuple[str, ...] = ()
    replace: Callable[[], None] = _nothing


class GivenOrder(LengthGroupedBatchSampler):
    """Batches of rows in the order of the input, as many as fit into the token budget."""

    def __init__(
        self,
        groups: Sequence[tuple[RowIndices, NDArray[np.integer]]],
        *,
        batch_size: int,
        max_tokens: int | None,
        **others: Any,
    ) -> None:
        super().__init__(groups, batch_size=batch_size, max_tokens=max_tokens, **others)
        self.batches, self.padded_tokens = [], 0
        for rows, costs in groups:
            start, longest = 0, 0
            for end, cost in enumerate(costs.tolist(), start=1):
                longest = max(longest, cost)
                is_full = end - start == batch_size or (end - start + 1) * longest > (max_tokens or np.inf)
                if is_full or end == len(rows):
                    self.batches.append(rows[start:end])
                    self.padded_tokens += (end - start) * longest
                    start, longest = end, 0


def _without_length_grouping() -> None:
    memvec.data.plan.LengthGroupedBatchSampler = GivenOrder  # type: ignore[misc]


def _with_padding() -> None:
    memvec.model.extractor.can_leave_padding_out = lambda *arguments, **options: False  # type: ignore[attr-defined]


def _without_deduplication() -> None:
    memvec.data.prepared.first_occurrence = lambda pairs: np.arange(len(pairs))


ABLATIONS = {
    "shared prefix": Ablation("the shared prefix", ("model.prefix_cache=off",)),
    "tuning": Ablation("any tuning", ("model.tune=off",)),
    "unpadded batches": Ablation("batches without padding", replace=_with_padding),
    "length grouping": Ablation("length grouping", replace=_without_length_grouping),
    "deduplication": Ablation("deduplication", replace=_without_deduplication),
    "probe": Ablation("the probe", ("model.probe=off",)),
}
