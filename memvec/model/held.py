"""A model that is held in memory, with all that was found out about it once: its prefix, matmuls, execution mode.

In: tokenised prompts of any number of texts, call after call. Out: their vectors, in order.

How: the warm-up runs once, on a few fixed texts, so that the first call of a program pays for three short rows and not
for a measurement; matmuls are measured at the first call that has enough to compute for it to pay. A model that is lent
may have been trained since the last call: its prefix is computed anew in each call that is large enough to gain by it,
its weights are left alone, and every module is back in its mode when the call ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from memvec.data.batches import PromptTable
from memvec.data.collator import PromptArrays
from memvec.data.plan import BatchPlan, Ranks, plan_batches
from memvec.data.rules import BatchRules
from memvec.digest import first_occurrence
from memvec.model.backbone import Backbone
from memvec.model.copies import CopiedBatch, to_device, to_host
from memvec.model.extractor import Extractor
from memvec.model.lending import lent, state_of
from memvec.model.parity import ExecutionMode
from memvec.model.speedups import Speedups
from memvec.model.warm_up import measure_and_probe, token_budget, warm_up
from memvec.prompt.encoder import EncodedPrompts, PromptEncoder

# Short and long, of two scripts: what the fast way is compared with the plain one on.
PROBE_TEXTS = (
    "tea",
    "每周三晚上去上书法课，老师姓林，教室在图书馆旁边。",
    "He moved to Lisbon in 2021 and lives near the river with two cats and a very old parrot; he works there.",
)
# With fewer rows than this, computing the prefix of a lent model anew costs more than it spares.
ROWS_TO_SHARE_PREFIX = 16


class HeldModel:
    """Computes vectors of prompts, call after call.

    Args:
        backbone: On its device, in the dtype it computes in.
        prompts: Makes texts prompts.
        rules: How rows become batches.
        speedups: Which ways to be fast are wanted.
        computed_in: Dtype that decides how exact vectors are.
        context: Entered around every pass, such as autocast.
        is_lent: Whether the model belongs to the program.
        load_exact: Returns the backbone in float32, for rows whose vector is not finite in a lower precision.
        identity: Returns what identifies the weights; it reads all of them, so that it is asked for where it is needed.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: PromptEncoder,
        *,
        rules: BatchRules,
        speedups: Speedups,
        computed_in: torch.dtype,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        is_lent: bool,
        load_exact: Callable[[], Backbone],
        identity: Callable[[], dict[str, str]],
    ) -> None:
        self.prompts = prompts
        self.rules = rules
        self.is_lent = is_lent
        self.load_exact = load_exact
        self.identity = identity
        self.speedups = speedups
        # The first texts are too few to compile anything for.
        self.extractor = Extractor(
            backbone, speedups=replace(speedups, compile=False), computed_in=computed_in, context=context
        )
        self._mode = ExecutionMode.BATCHED  # what the probe allows
        self._mode_of_few = ExecutionMode.BATCHED  # what it allows where the prefix is not worth computing anew
        self._probed: tuple[object, ...] | None = None  # the state of a lent model then; None before the probe has run
        self._max_tokens: int | None = None
        self._has_measured = False  # which matmuls are faster, and compiled layers

    @torch.no_grad()
    def compute(
        self, encoded: EncodedPrompts, *, progress: bool = False, to: torch.device
    ) -> tuple[torch.Tensor, dict[int, str]]:
        """Returns the vectors of prompts.

        Args:
            encoded: N prompts.
            progress: Whether to show a progress bar, in tokens.
            to: Device of the result.

        Returns:
            `[N, D]` or `[N, L, D]` float32, and why a row has no finite vector, by row.
        """
        first = first_occurrence(encoded.digests)
        table = self._table(encoded, rows=np.flatnonzero(first == np.arange(len(first))))
        with lent(self.extractor.decoder) if self.is_lent else nullcontext():
            plan = self._plan(table)
            vectors = torch.empty((len(first), *self.extractor.shape), dtype=torch.float32, device=to)
            broken = self._run(plan, vectors, progress=progress)
            failed = self._retry(plan, vectors, broken)
            if self.is_lent:
                self.extractor.prefix = None
        again = torch.from_numpy(np.flatnonzero(first != np.arange(len(first)))).to(to)
        vectors[again] = vectors[torch.from_numpy(first).to(to)[again]]
        reasons = {row: failed[origin] for row, origin in enumerate(first.tolist()) if origin in failed}
        return vectors, reasons

    def _table(self, encoded: EncodedPrompts, *, rows: NDArray[np.int64]) -> PromptTable:
        return PromptTable(
            PromptArrays(encoded.input_ids, encoded.offsets),
            lengths=np.diff(encoded.offsets).astype(np.int32),
            shared=encoded.shared,
            rows=rows,
        )

    def _plan(self, table: PromptTable) -> BatchPlan:
        """Plans a call's batches; warms the model up at the first, and measures at the first that is large."""
        extractor = self.extractor
        state = state_of(extractor.decoder) if self.is_lent else ()
        if state != self._probed:
            self._probe()
            self._probed = state
        extractor.rejections.clear()
        extractor.mode = self._mode
        if self.is_lent and self._mode is ExecutionMode.SHARED_PREFIX:  # its weights may be others now
            shares = len(table.rows) >= ROWS_TO_SHARE_PREFIX
            extractor.share_prefix(table.common_tokens()[: None if shares else 0])
            extractor.mode = self._mode if extractor.prefix is not None else self._mode_of_few
        plan = self._plan_for_mode(table)
        if plan.pays_measuring and not self._has_measured:
            extractor.speedups = self.speedups
            measure_and_probe(extractor, plan)
            self._mode, self._has_measured = extractor.mode, True
            plan = self._plan_for_mode(table)
        return plan

    def _probe(self) -> None:
        """Warms the model up on a few texts."""
        extractor, table = self.extractor, self._probe_table()
        plan = warm_up(extractor, table, replace(self.rules, max_tokens=None), ranks=Ranks())
        self._mode = extractor.mode
        if self.is_lent and self._mode is ExecutionMode.SHARED_PREFIX:
            extractor.share_prefix(table.common_tokens()[:0])
            extractor.choose_mode(plan.to_probe())
            self._mode_of_few = extractor.mode

    def _probe_table(self) -> PromptTable:
        """Returns the prompts of `PROBE_TEXTS`, and one more that is as long as the last and holds its tokens reversed.

        Only rows of one length show what goes wrong when such rows run side by side.
        """
        encoded = self.prompts.encode(PROBE_TEXTS)
        last, shared = encoded.input_ids[encoded.offsets[-2] :], int(encoded.shared[-1])
        offsets = np.append(encoded.offsets, encoded.offsets[-1] + len(last))
        ids = np.concatenate([encoded.input_ids, last[:shared], last[shared:-1][::-1], last[-1:]])
        return PromptTable(
            PromptArrays(ids, offsets),
            lengths=np.diff(offsets).astype(np.int32),
            shared=np.append(encoded.shared, encoded.shared[-1]),
            rows=np.arange(len(PROBE_TEXTS) + 1),
        )

    def _plan_for_mode(self, table: PromptTable) -> BatchPlan:
        """Plans batches as the extractor's mode computes them."""
        extractor = self.extractor
        prefix_length = len(extractor.prefix) if extractor.prefix is not None else 0
        if extractor.mode is ExecutionMode.UNPADDED:
            prefix_length = len(table.common_tokens())  # which a batch computes once
        elif extractor.mode is not ExecutionMode.SHARED_PREFIX:
            prefix_length = 0
        batches = table.batches(prefix_length, self.rules, boundaries=extractor.boundaries, windows=extractor.windows)
        self._max_tokens = self._max_tokens or token_budget(extractor, batches, self.rules, Ranks())
        return plan_batches(
            batches,
            self.rules,
            lengths=table.lengths,
            prefix_length=prefix_length,
            max_tokens=self._max_tokens,
            ranks=Ranks(),
            is_padded=extractor.mode is not ExecutionMode.UNPADDED,
        )

    def _run(self, plan: BatchPlan, vectors: torch.Tensor, *, progress: bool) -> list[int]:
        """Computes the batches of a plan into the rows of `vectors`; returns those whose vector is not finite."""
        waiting: CopiedBatch | None = None
        broken: list[int] = []
        with tqdm(total=plan.sampler.padded_tokens, unit="tokens", unit_scale=True, disable=not progress) as bar:
            for position, rows in enumerate(plan.sampler.batches):
                batch = plan.batches.of(rows)
                computed = self.extractor(to_device(batch, self.extractor.device))
                copied = _copied(batch["index"], computed, vectors.device)
                # A batch is looked at while the next one is computed: the device does not wait.
                broken += _store(vectors, waiting)
                waiting = copied
                bar.update(plan.batch_tokens(position, batch))
            broken += _store(vectors, waiting)
        if vectors.device.type != "cpu":  # there looking waits, so once
            computed_rows = np.concatenate([np.empty(0, dtype=np.int64), *plan.sampler.batches])
            finite = vectors[torch.from_numpy(computed_rows).to(vectors.device)].flatten(1).isfinite().all(dim=1)
            broken = computed_rows[~finite.cpu().numpy()].tolist()
        return sorted(broken)

    def _retry(self, plan: BatchPlan, vectors: torch.Tensor, broken: list[int]) -> dict[int, str]:
        """Computes rows without a finite vector again, in float32; returns why those have none that still have not."""
        failed: dict[int, str] = {}
        exact: Extractor | None = None
        for row in broken:
            if (reason := self.extractor.rejections.get(row)) is None:
                input_ids = plan.batches.input_ids(row)
                if self.extractor.computed_in not in (torch.float32, torch.float64):
                    if exact is None:
                        exact = Extractor(self.load_exact(), speedups=OFF, computed_in=torch.float32)
                    vectors[row] = exact.recompute(input_ids)
                if bool(vectors[row].isfinite().all()):
                    continue
                reason = f"the vector of its {len(input_ids)} tokens holds NaN or infinity"
            vectors[row] = torch.nan
            failed[row] = reason
        return failed


OFF = Speedups(prefix_cache="off", tune="off", probe="off")


def _copied(rows: torch.Tensor, computed: torch.Tensor, to: torch.device) -> CopiedBatch:
    """Starts the copy of a batch's vectors to a device."""
    return to_host(rows, computed) if to.type == "cpu" else CopiedBatch(rows.to(to), computed.to(to), None)


def _store(vectors: torch.Tensor, copied: CopiedBatch | None) -> list[int]:
    """Puts the vectors of a batch, where there is one, in their rows; returns those on the host that are not finite."""
    if copied is None:
        return []
    copied.wait()
    vectors[copied.rows] = copied.predictions
    if vectors.device.type != "cpu":
        return []
    # One number first: a sum is finite only if all of its terms are, and is much sooner had.
    if copied.predictions.sum().isfinite():
        return []
    finite = copied.predictions.flatten(1).isfinite().all(dim=1)
    return [int(row) for row in copied.rows[~finite].tolist()]


def float32_copy(backbone: Backbone) -> Backbone:
    """Returns a copy of a backbone in float32; the backbone itself stays as it is."""
    decoder = copy.deepcopy(backbone.decoder)
    exact = Backbone(decoder, layers=backbone.layers, has_token_types=backbone.has_token_types)
    return exact.float().eval()
