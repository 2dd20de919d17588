"""The plan of one rank: which rows it computes, in which batches, with which prefix.

In: what rows cost (`BatchRules`), the prompts that are left (`memvec.data.batches.PromptTable`) and the ranks that
share them. Out: a `BatchPlan`, which a DataLoader, a program's encoder, the progress bar and the metrics all read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memvec.data.batches import PromptBatches, PromptTable
from memvec.data.budget import TOKENS_ON_CPU
from memvec.data.collator import Batch
from memvec.data.cutting import RowIndices
from memvec.data.ranks import RankPlan, plan_ranks
from memvec.data.rules import BatchRules
from memvec.data.sampler import LengthGroupedBatchSampler

# With fewer tokens to compute than this, measuring which matmuls are faster takes longer than the faster save.
TOKENS_TO_PAY = 16_384
# Enough to tell matmuls apart, few enough to try several within a second or two.
TOKENS_TO_MEASURE = 256
# A batch that is generated decodes for all its rows: two of them are enough to measure on.
ROWS_TO_MEASURE = 2


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Ranks:
    """The processes that share the rows, seen from one of them.

    Args:
        rank: Which one, from 0. Ranks of one tensor-parallel group count as one: they must see the same batches.
        world_size: How many.
        in_step: Whether all must run equally many batches (FSDP2), which dummy batches make up for.
        broadcast: Returns the first process's value on all of them.
    """

    rank: int = 0
    world_size: int = 1
    in_step: bool = False
    broadcast: Callable[[Any], Any] = field(default=_same)


@dataclass(frozen=True)
class BatchPlan:
    """What one rank computes.

    Args:
        batches: Makes padded batches of rows.
        sampler: Yields the rows of each batch, longest first.
        rules: How rows became batches.
        lengths: Tokens of every prompt of the input, `[N]`.
        prefix_length: Leading tokens that are computed once; 0 where none are.
        max_tokens: Most tokens in a batch.
        is_padded: Whether rows are padded to the longest of their batch.
        warm_up_seconds: What the warm-up took, this plan included.
    """

    batches: PromptBatches
    sampler: LengthGroupedBatchSampler
    rules: BatchRules
    lengths: NDArray[np.int32]
    prefix_length: int
    max_tokens: int
    is_padded: bool = True
    warm_up_seconds: float = 0.0

    @property
    def pays_measuring(self) -> bool:
        """Whether this rank has enough to compute for a measurement of a second or two to pay."""
        return self.sampler.padded_tokens >= TOKENS_TO_PAY

    @property
    def full_batches(self) -> float:
        """How many batches of the most tokens there would be."""
        return self.sampler.padded_tokens / self.max_tokens

    def full_batch(self) -> Batch:
        """Returns as many rows of typical length as a batch holds, or is enough to measure on; there are some."""
        batch = self.typical() if self.rules.output_tokens else self.batches.typical(tokens=self.max_tokens)
        assert batch is not None
        return batch

    def without_padding(self, ranks: Ranks) -> BatchPlan:
        """Returns the plan of the same rows where none is padded.

        Args:
            ranks: The processes that share the rows.
        """
        return plan_batches(
            self.batches,
            self.rules,
            lengths=self.lengths,
            prefix_length=self.prefix_length,
            max_tokens=self.max_tokens,
            ranks=ranks,
            is_padded=False,
        )

    def typical(self) -> Batch | None:
        """Returns a few rows of typical length to measure on; None where this rank has none."""
        if not self.sampler.batches:
            return None
        if self.rules.output_tokens:  # the shorter rows of the batch in the middle
            return self.batches.of(self.sampler.batches[len(self.sampler.batches) // 2][-ROWS_TO_MEASURE:])
        return self.batches.typical(tokens=TOKENS_TO_MEASURE)

    def to_probe(self) -> list[Batch]:
        """Returns the rows on which the fast way is compared with the plain one."""
        return self.batches.to_probe() if len(self.sampler) else []  # one with dummy batches alone probes in step

    def count_tokens(self) -> int:
        """Returns the tokens of this rank's prompts, shared prefix included, padding not."""
        return sum(int(self.lengths[rows].sum()) for rows in self.sampler.batches)

    def batch_tokens(self, position: int, batch: Batch) -> int:
        """Returns the tokens that the batch at a position adds to the progress; a dummy batch adds none."""
        if self.sampler.is_dummy(position):
            return 0
        if not self.is_padded:
            rows = self.sampler.batches[position]
            return int(self.rules.row_tokens(self.lengths[rows], batch["prefix_length"]).sum())
        count, width = batch["input_ids"].shape
        return count * int(self.rules.row_tokens(np.int32(width), batch["prefix_length"]))  # type: ignore[arg-type]


def plan_batches(
    batches: PromptBatches,
    rules: BatchRules,
    *,
    lengths: NDArray[np.int32],
    prefix_length: int,
    max_tokens: int,
    ranks: Ranks,
    is_padded: bool = True,
) -> BatchPlan:
    """Plans one rank's batches.

    Args:
        batches: The rows that are left, in the groups that may share a batch.
        rules: How rows become batches.
        lengths: Tokens of every prompt of the input, `[N]`.
        prefix_length: Leading tokens that are computed once.
        max_tokens: Most tokens in a batch.
        ranks: The processes that share the rows.
        is_padded: Whether rows are padded to the longest of their batch.
    """
    in_step = 0
    if ranks.in_step:
        plans = plan_all_ranks(batches.groups, rules, max_tokens=max_tokens, world_size=ranks.world_size)
        in_step = max(plan.batches for plan in plans)
    sampler = LengthGroupedBatchSampler(
        batches.groups,
        batch_size=rules.batch_size,
        max_tokens=max_tokens,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shortest_in_batch=rules.shortest_in_batch,
        is_padded=is_padded,
        batches_in_step=in_step,
    )
    batches.collate.builds_tries = not is_padded
    return BatchPlan(batches, sampler, rules, lengths, prefix_length, max_tokens, is_padded)


def plan_nothing(table: PromptTable, rules: BatchRules, ranks: Ranks) -> BatchPlan:
    """Returns the plan of a rank where no row of a table is left, so that no model is asked for prefix and budget."""
    return plan_batches(
        table.batches(0, rules), rules, lengths=table.lengths, prefix_length=0, max_tokens=TOKENS_ON_CPU, ranks=ranks
    )


def plan_all_ranks(
    groups: Sequence[tuple[RowIndices, NDArray[np.integer]]],
    rules: BatchRules,
    *,
    max_tokens: int | None,
    world_size: int,
    is_padded: bool = True,
) -> list[RankPlan]:
    """Returns what each of `world_size` ranks would compute, in numbers; arguments as `plan_ranks` takes them."""
    return plan_ranks(
        [costs for _, costs in groups],
        batch_size=rules.batch_size,
        max_tokens=max_tokens,
        world_size=world_size,
        shortest_in_batch=rules.shortest_in_batch,
        is_padded=is_padded,
    )
