"""What a run would be: batches, padding, balance over the ranks, time.

    python -m memvec.predict data.path=memories.jsonl trainer=ddp trainer.devices=8 dry_run=true

In: the configuration of the run. Out: its plan for as many processes as the run would have; and nothing on disk.

How: the input is read and tokenised as in the run, in a temporary folder; batches are planned for all ranks; and a few
batches, spread over the plan, go through the model on one device of this machine, which gives a time. Where the weights
are to be sharded over devices, one device is too small to measure on, and no time is given.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import DictConfig

from memvec.config.compose import count_processes
from memvec.data.budget import TOKENS_ON_ACCELERATOR, TOKENS_ON_CPU
from memvec.data.datamodule import PromptDataModule, plan_of
from memvec.data.plan import plan_all_ranks
from memvec.data.ranks import RankPlan, balance
from memvec.files import read_json
from memvec.layout import RunLayout
from memvec.model.copies import to_device
from memvec.model.limits import length_boundaries
from memvec.model.module import HiddenStateModule
from memvec.quiet import ignore_lightning_warnings
from memvec.run.build import build_datamodule, build_model, build_writer
from memvec.run.folder import RunFolder
from memvec.run.reuse import FinishedRun, check_runs, find_runs, known_rows
from memvec.run.summary import reused_lines
from memvec.trainer.build import build_lone_trainer, shards_weights
from memvec.trainer.metrics import Stopwatch

BATCHES_TO_MEASURE = 8
SECONDS_TO_MEASURE = 5.0
# So many ranks get a line each; of more, the first ones do.
RANKS_SHOWN = 16


@dataclass(frozen=True)
class DryRun:
    """A plan of a run.

    Args:
        entries: Usable rows of the input.
        rejected: Rows that cannot be used.
        prefix_length: Tokens that all prompts share, which are computed once.
        ranks: What each rank that has rows of its own computes.
        seconds_to_start: Seconds that reading and tokenising, and loading and probing the model, took here.
        tokens_per_second: Padded tokens that one device computes in a second; None where it was not measured.
        reused: How many vectors would be taken from which finished run.
    """

    entries: int
    rejected: int
    prefix_length: int
    ranks: list[RankPlan]
    seconds_to_start: dict[str, float]
    tokens_per_second: float | None
    reused: dict[str, int]

    @property
    def slowest(self) -> RankPlan:
        """The rank with the most to compute."""
        return max(self.ranks, key=lambda rank: rank.padded_tokens)

    @property
    def seconds(self) -> float | None:
        """How long the slowest rank computes."""
        return None if self.tokens_per_second is None else self.slowest.padded_tokens / self.tokens_per_second

    def lines(self) -> list[str]:
        """Returns the plan as it is printed."""
        rows, batches, tokens, padded = (
            sum(getattr(rank, name) for rank in self.ranks) for name in ("rows", "batches", "tokens", "padded_tokens")
        )
        ranks = "1 rank" if len(self.ranks) == 1 else f"{len(self.ranks):,} ranks"
        start = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds_to_start.items())
        if rows == 0:
            speed = "nothing is left to compute"
        elif self.seconds is None or self.tokens_per_second is None:
            speed = "not measured, since the weights are sharded over devices"
        else:
            entries = self.slowest.rows / self.seconds if self.seconds else 0.0
            rate = f"{self.tokens_per_second:,.0f} of these tokens/s, {entries:,.1f} entries/s a rank"
            speed = f"about {self.seconds:,.0f} s at {rate}"
        return [
            f"entries    {self.entries:,} ({rows + sum(self.reused.values()):,} different), {self.rejected:,} rejected",
            *reused_lines(self.reused),
            f"tokens     {tokens:,} to compute; a shared prefix of {self.prefix_length} is computed once",
            f"batches    {batches:,} over {ranks}, {_padding(tokens, padded)} padding",
            f"balance    {balance([rank.padded_tokens for rank in self.ranks]):.3f} (largest rank over the mean)",
            *self._table(),
            f"start      {start}",
            f"predict    {speed}",
        ]

    def _table(self) -> list[str]:
        lines = [f"{'rank':>6}{'entries':>12}{'batches':>10}{'tokens':>14}{'padding':>10}"]
        for number, rank in enumerate(self.ranks[:RANKS_SHOWN]):
            padding = _padding(rank.tokens, rank.padded_tokens)
            lines.append(f"{number:>6}{rank.rows:>12,}{rank.batches:>10,}{rank.tokens:>14,}{padding:>10}")
        return lines + (["     …"] if len(self.ranks) > RANKS_SHOWN else [])


def _padding(tokens: int, padded: int) -> str:
    return f"{1 - tokens / padded:.1%}" if padded else "0.0%"


def plan_run(cfg: DictConfig) -> DryRun:
    """Plans a run without running it.

    Args:
        cfg: The run's configuration.

    Raises:
        MemvecError: Something in the configuration, input or model is wrong; the message says what.
    """
    ignore_lightning_warnings()
    stopwatch = Stopwatch()
    speed = _Speed()
    with tempfile.TemporaryDirectory(prefix="memvec-plan-") as scratch:
        folder = RunFolder(scratch)
        folder.journal.mkdir()
        module = build_model(cfg)
        datamodule = build_datamodule(cfg, module, folder)
        runs = find_runs(cfg.reuse, own=RunLayout(cfg.output_dir or scratch))
        if runs:
            precision = str(build_lone_trainer(cfg, folder, callback=speed).precision)
            check_runs(runs, module.fingerprint(precision=precision) | build_writer(cfg, folder).fingerprint())
        with stopwatch.stage("read and tokenise"):
            datamodule.prepare_data()
        reused = _leave_out_known(datamodule, runs) if runs else {}
        rules = datamodule.input.rules
        is_padded = True
        if shards_weights(cfg):
            table = datamodule.table()
            prefix_length = len(table.common_tokens()) if module.speedups.prefix_cache == "auto" else 0
            boundaries = length_boundaries(module.checkpoint.config)
            groups = table.batches(prefix_length, rules, boundaries=boundaries).groups
            on_accelerator = cfg.trainer.accelerator != "cpu" and torch.accelerator.is_available()
            default = TOKENS_ON_ACCELERATOR if on_accelerator else TOKENS_ON_CPU
            max_tokens: int | None = rules.max_tokens if isinstance(rules.max_tokens, int) else default
        else:
            with stopwatch.stage("load and probe the model"), _cores_of_one_rank(cfg):
                trainer = build_lone_trainer(cfg, folder, callback=speed)
                trainer.predict(module, datamodule=datamodule, return_predictions=False)
            stopwatch.seconds["load and probe the model"] -= speed.seconds
            plan = plan_of(trainer)
            prefix_length, groups, max_tokens = plan.prefix_length, plan.batches.groups, plan.sampler.max_tokens
            is_padded = plan.is_padded
        found = read_json(folder.input_summary)
        return DryRun(
            entries=found["rows"] - found["rejected"],
            rejected=found["rejected"],
            prefix_length=prefix_length,
            ranks=plan_all_ranks(
                groups, rules, max_tokens=max_tokens, world_size=_count_ranks(cfg), is_padded=is_padded
            ),
            seconds_to_start=stopwatch.seconds,
            tokens_per_second=speed.tokens_per_second,
            reused=reused,
        )


def _leave_out_known(datamodule: PromptDataModule, runs: Sequence[FinishedRun]) -> dict[str, int]:
    """Leaves the rows out that finished runs have vectors of; returns how many are in which."""
    known = known_rows(runs, datamodule.prepared.folder)
    datamodule.prepared.find_remaining(lambda rows: np.isin(np.arange(rows), np.concatenate(list(known.values()))))
    return {name: len(rows) for name, rows in known.items() if len(rows)}


def _count_ranks(cfg: DictConfig) -> int:
    """Returns how many ranks have rows of their own: all, or one in each tensor-parallel group."""
    if not shards_weights(cfg):
        return count_processes(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes)
    groups = cfg.trainer.strategy.data_parallel_size
    return int(cfg.trainer.num_nodes if groups == "auto" else groups)


@contextmanager
def _cores_of_one_rank(cfg: DictConfig) -> Iterator[None]:
    """Computes with the cores that one of the run's processes will have, as Lightning divides them."""
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        processes = count_processes(cfg.trainer.accelerator, cfg.trainer.devices, 1)
        torch.set_num_threads(max(1, threads // processes))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Speed(pl.Callback):
    """Behind the first batch, when everything is loaded and warm, runs a few batches from all over the plan."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Padded tokens a second."""
        return self.tokens / self.seconds if self.seconds else None

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Measures."""
        plan, extractor = plan_of(trainer), cast(HiddenStateModule, pl_module).engine
        batches = plan.sampler.batches
        for position in np.linspace(0, len(batches) - 1, num=min(BATCHES_TO_MEASURE, len(batches)), dtype=int):
            if self.seconds > SECONDS_TO_MEASURE:
                break
            batch = to_device(plan.batches.of(batches[position]), extractor.device)
            start = time.perf_counter()
            extractor(batch).cpu()  # waits for the device
            self.seconds += time.perf_counter() - start
            self.tokens += plan.batch_tokens(int(position), batch)
