"""The warm-up: what happens once between loading a model and its first batch, in order.

    shared prefix -> token budget -> plan -> matmuls -> padding -> compile -> probe

In: an engine (`memvec.model.extractor.Extractor` computes vectors, `memvec.generation.generator.Generator` texts), the
prompts that are left, how rows become batches. Out: the plan of this rank's batches, and the engine ready to run them
as fast as it may be trusted to. The prefix comes first since it decides what a row costs; matmuls are measured on rows
of the plan, and the probe comes last since it judges all that was chosen before.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from memvec.data.batches import PromptBatches, PromptTable
from memvec.data.budget import BUDGETS_ON_ACCELERATOR, BUDGETS_ON_CPU, choose_budget
from memvec.data.plan import BatchPlan, Ranks, plan_batches
from memvec.data.rules import BatchRules
from memvec.model.engine import Engine
from memvec.model.lockstep import WeightGroup
from memvec.model.parity import ExecutionMode
from memvec.model.tuning import DEFAULT

# With fewer full batches to compute than this, measuring whether padding pays takes longer than what leaving it out
# saves. A processor gains an eighth by it, and takes long for a batch.
BATCHES_TO_PAY, BATCHES_TO_PAY_ON_CPU = 4, 64

log = logging.getLogger(__name__)


def warm_up(engine: Engine, table: PromptTable, rules: BatchRules, *, ranks: Ranks) -> BatchPlan:
    """Makes an engine ready for the rows of a table and plans this rank's batches of them.

    Args:
        engine: Its weights are loaded.
        table: The prompts, and which are left.
        rules: How rows become batches.
        ranks: The processes that share the rows.
    """
    start = time.perf_counter()
    prefix_length = engine.share_prefix(table.common_tokens())
    batches = table.batches(prefix_length, rules, boundaries=engine.boundaries, windows=engine.windows)
    max_tokens = token_budget(engine, batches, rules, ranks)
    plan = plan_batches(
        batches, rules, lengths=table.lengths, prefix_length=prefix_length, max_tokens=max_tokens, ranks=ranks
    )
    # Processes with other batches would each measure something else, and wait for each other: no tuning there.
    if not engine.group.is_sharded and (typical := plan.typical()) is not None:
        if plan.pays_measuring:
            engine.choose_matmuls(typical)
        seconds_left = leave_padding_out(engine, plan)
        engine.compile(plan.full_batch() if seconds_left else typical, seconds_left=seconds_left)
    engine.choose_mode(plan.to_probe())
    if engine.mode is ExecutionMode.UNPADDED:
        plan = plan.without_padding(ranks)
    return replace(plan, warm_up_seconds=time.perf_counter() - start)


def leave_padding_out(engine: Engine, plan: BatchPlan) -> float:
    """Has an engine leave padding out of the batches of a plan.

    Whether that is faster is measured where there are batches enough for it to pay. With fewer, a device that is not
    the processor leaves it out unmeasured: on an H100 it was faster for every model and length that was tried.

    Returns:
        The seconds that the plan takes to compute, as far as that was measured; else 0.
    """
    if is_large(engine, plan):
        return plan.full_batches * engine.leave_padding_out(plan.full_batch(), if_faster=True)
    if engine.device.type != "cpu" and (few := plan.typical()) is not None:
        engine.leave_padding_out(few, if_faster=False)
    return 0.0


def is_large(engine: Engine, plan: BatchPlan) -> bool:
    """Whether a plan has batches enough to measure on full ones what makes them faster."""
    return plan.full_batches >= (BATCHES_TO_PAY_ON_CPU if engine.device.type == "cpu" else BATCHES_TO_PAY)


def warm_up_notes(engine: Engine | None) -> dict[str, Any]:
    """Returns what was found out, for the manifest; None stands for an engine that had nothing to compute."""
    if engine is None:
        return {
            "weights": str(WeightGroup()),
            "computed_in": None,
            "path": "nothing was left to compute",
            "probe_relative_error": {},
            "matmuls": DEFAULT,
            "matmul_milliseconds": {},
            "compile_seconds": None,
            "prefix_tokens": 0,
        }
    has_prefix = engine.prefix is not None and engine.mode is ExecutionMode.SHARED_PREFIX
    return {
        "weights": str(engine.group),
        "computed_in": str(engine.computed_in).removeprefix("torch."),
        "path": engine.mode.value,
        "probe_relative_error": engine.probe_errors,
        "matmuls": engine.matmuls.matmuls if engine.matmuls is not None else DEFAULT,
        "matmul_milliseconds": engine.matmuls.milliseconds if engine.matmuls is not None else {},
        "compile_seconds": engine.compile_seconds,
        "prefix_tokens": len(engine.prefix) if has_prefix and engine.prefix is not None else 0,
    }


def token_budget(engine: Engine, batches: PromptBatches, rules: BatchRules, ranks: Ranks) -> int:
    """Returns the most tokens in a batch: what was asked for, the device's default, or the fastest of several."""
    if rules.max_tokens != "auto":
        return rules.max_tokens or engine.default_tokens
    if not any(len(rows) for rows, _ in batches.groups):
        return engine.default_tokens
    if engine.group.is_sharded:  # processes that stop trying at different budgets would wait for each other
        log.info("data.max_tokens=auto: %d, not tried where weights are sharded", engine.default_tokens)
        return engine.default_tokens

    def seconds(tokens: int) -> float | None:
        batch = batches.typical(tokens=tokens)
        return engine.seconds_per_token(batch) if batch is not None else None

    found, rates = choose_budget(seconds, BUDGETS_ON_CPU if engine.device.type == "cpu" else BUDGETS_ON_ACCELERATOR)
    # Every rank tries, since all have to be busy for the trial to be real; the first one's answer counts for all.
    budget: int = ranks.broadcast(found)
    tried = ", ".join(f"{tokens} {rate:,.0f}" if rate else f"{tokens} too large" for tokens, rate in rates.items())
    log.info("data.max_tokens=auto: %d (tokens/s by budget: %s)", budget, tried)
    return budget
