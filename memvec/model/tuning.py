"""Chooses between torch's own matmuls and packed weights, by measuring both on real rows.

In: a decoder on a CPU and a function that runs a few real rows through it. Out: the decoder, its weights packed
(`memvec.model.packing`) where that is faster.

Why measure: which of them is faster differs by processor, dtype and row length, in opposite directions and up to 2.4
times. Without AVX-512 nothing is measured: there packed weights were never faster (tests/benchmarks/README.md). Why the
error is checked too: a block that only looks like what it is packed as gives other vectors. Packed weights whose
vectors differ by more than rounding are not taken, however fast.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from memvec.errors import one_line
from memvec.model.packing import can_pack, pack, unpack
from memvec.model.parity import relative_error

CALLS = 3
LONG_ENOUGH = 0.75  # seconds
# Less gain than this is noise, and torch's matmuls stay.
SMALLEST_GAIN = 1.03
# Packed weights that are this much slower the first time are not worth measuring.
HOPELESS = 1.5
# Where packed weights were never faster, as torch names a processor's instructions.
SLOWER_PACKED = {"AVX2"}
# A model may look into its layers.
UNUSABLE = (RuntimeError, AttributeError, TypeError, ValueError)
ROUNDING = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 0.02, torch.bfloat16: 0.05}
DEFAULT, PACKED = "default", "packed weights"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and on what grounds.

    Args:
        matmuls: `DEFAULT` or `PACKED`.
        milliseconds: Of either, where it gives the same vectors.
    """

    matmuls: str
    milliseconds: dict[str, float]

    @property
    def gain(self) -> float:
        """How many times as fast packed weights are; 1 where they are not taken."""
        return self.milliseconds[DEFAULT] / self.milliseconds[PACKED] if self.matmuls == PACKED else 1.0


def is_worth_measuring(decoder: PreTrainedModel, *, computed_in: torch.dtype, device: torch.device) -> bool:
    """Whether weights can be packed at all, and it may pay on this processor.

    Args:
        decoder: The decoder, its weights not packed.
        computed_in: Dtype of the computation; another than the weights' means autocast, which packed weights ignore.
        device: On a GPU there is nothing to choose.
    """
    dtype = decoder.dtype
    may_pay = torch.backends.cpu.get_cpu_capability() not in SLOWER_PACKED
    return may_pay and dtype == computed_in and can_pack(decoder, dtype=dtype, device=device)


def choose_matmuls(
    decoder: PreTrainedModel, compute: Callable[[], torch.Tensor], *, dtype: torch.dtype
) -> Choice | None:
    """Measures both and leaves the decoder set to the faster.

    Args:
        decoder: The decoder to set.
        compute: Runs a few real rows and returns their vectors, `[B, D]`.
        dtype: Of the computation; decides how far vectors may differ.

    Returns:
        The choice; None where there is none to make.
    """
    if not is_worth_measuring(decoder, computed_in=dtype, device=decoder.device):
        return None
    unpack(decoder)
    seconds, reference = measure(compute)
    measured = {DEFAULT: seconds}
    pack(decoder)
    try:
        seconds, vectors = measure(compute, give_up_after=HOPELESS * measured[DEFAULT])
        if (error := relative_error(vectors, reference)) <= ROUNDING.get(dtype, ROUNDING[torch.bfloat16]):
            measured[PACKED] = seconds
        else:
            log.info("model.tune: packed weights are not used, their vectors differ by %.2g", error)
    except UNUSABLE as failure:
        log.info("model.tune: packed weights cannot be used (%s)", one_line(failure))
    is_faster = measured[DEFAULT] >= SMALLEST_GAIN * measured.get(PACKED, torch.inf)
    if not is_faster:
        unpack(decoder)
    choice = Choice(PACKED if is_faster else DEFAULT, {name: round(1000 * each, 2) for name, each in measured.items()})
    shown = ", ".join(f"{name} {milliseconds:.0f}" for name, milliseconds in choice.milliseconds.items())
    log.info("model.tune: %s (milliseconds: %s)", choice.matmuls, shown)
    return choice


def measure(
    compute: Callable[[], torch.Tensor], *, calls: int = CALLS, give_up_after: float | None = None
) -> tuple[float, torch.Tensor]:
    """Times a computation.

    Args:
        compute: What to time; its result is in host memory, so that a GPU has finished it.
        calls: How often; the fewest seconds count, since the first call also warms up and another process can only make
            a call slower.
        give_up_after: Seconds; after a call that took longer there is no other. Nor is there when all took
            `LONG_ENOUGH` together: what takes long is measured well by one call.

    Returns:
        The fewest seconds of a call, and the last result.
    """
    fewest, spent = float("inf"), 0.0
    for _ in range(calls):
        start = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - start
        fewest, spent = min(fewest, seconds), spent + seconds
        if spent > LONG_ENOUGH or (give_up_after is not None and fewest > give_up_after):
            break
    return fewest, result
