"""The warm-up: what happens once between loading a model and its first batch, in order.

    shared prefix -> token budget -> plan -> matmuls -> probe -> compile

In: an engine (`memvec.model.extractor.Extractor` computes vectors, `memvec.generation.generator.Generator` texts), the
prompts that are left, how rows become batches. Out: the plan of this rank's batches, and the engine ready to run them
as fast as it may be trusted to. The prefix comes first since it decides what a row costs; matmuls are measured on rows
of the plan; the probe judges all that was chosen before it, and what is compiled behind it is probed again.
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
    measure_and_probe(engine, plan)
    if engine.mode is ExecutionMode.UNPADDED:
        plan = plan.without_padding(ranks)
    return replace(plan, warm_up_seconds=time.perf_counter() - start)


def measure_and_probe(engine: Engine, plan: BatchPlan) -> None:
    """Chooses matmuls, execution mode and compiled layers on rows of a plan, as far as there is enough of it to pay."""
    probes = plan.to_probe()
    # Processes with other batches would each measure something else, and wait for each other: no tuning there.
    tunes = not engine.group.is_sharded
    if tunes and plan.pays_measuring and (typical := plan.typical()) is not None:
        engine.choose_matmuls(typical)
    engine.choose_mode(probes)
    if tunes and len(plan.sampler) and engine.compile(plan.full_batch, batches=plan.full_batches):
        engine.choose_mode(probes)


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
    return {
        "weights": str(engine.group),
        "computed_in": str(engine.computed_in).removeprefix("torch."),
        "path": engine.mode.value,
        "probe_relative_error": engine.probe_errors,
        "matmuls": engine.matmuls.matmuls if engine.matmuls is not None else DEFAULT,
        "matmul_milliseconds": engine.matmuls.milliseconds if engine.matmuls is not None else {},
        "compile_seconds": engine.compile_seconds,
        "prefix_tokens": len(engine.prefix) if engine.mode.shares_prefix and engine.prefix is not None else 0,
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
