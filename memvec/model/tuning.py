"""Chooses the fastest kernels this processor has, by measuring them on real rows.

In: a decoder and a function that runs a few real rows through it. Out: the decoder set to the fastest combination of

- on a CPU, the matmuls: torch's default (MKL in float32), or oneDNN on packed weights (`memvec.model.packing`), up to
  2.4 times apart;
- the attention implementation (`sdpa`, or `memvec.model.attention`: on short rows either may win, by up to 1.4 times).

Why measure: which of them is faster differs by processor, dtype and row length, in opposite directions. Why the error
is checked too: a block that only looks like what it is packed as gives other vectors. A choice whose vectors differ
from the default's by more than rounding is not taken, however fast.

All but `sdpa` attention keeps a number for every pair of tokens, so what is fastest on short rows is by far the slowest
on long ones: the choice holds for rows up to `LENGTHS_ALIKE` times as long as those it was measured on, and longer ones
take the model's default.

The products are chosen first, then the attention with those products: the two hardly depend on each other, and a
measurement has to cost less than it gains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from memvec.errors import one_line
from memvec.model.attention import GROUPED
from memvec.model.packing import can_pack, is_packed, pack, unpack
from memvec.model.parity import relative_error
from memvec.model.transformers_internals import attention_of

CALLS = 3
LONG_ENOUGH = 0.75  # seconds
# Less gain than this is noise, and what was chosen before stays.
SMALLEST_GAIN = 1.03
# A choice that is this much slower the first time is not worth measuring.
HOPELESS = 1.5
LENGTHS_ALIKE = 2
# A model may look into its layers, and an architecture may not go with an attention implementation.
UNUSABLE = (RuntimeError, AttributeError, ValueError)
ROUNDING = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 0.02, torch.bfloat16: 0.05}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One combination.

    Args:
        attention: transformers' name of the attention implementation.
        products: `default` is torch's route; `packed` has oneDNN multiply packed weights.
    """

    attention: str
    products: str = "default"

    def __str__(self) -> str:
        return f"{self.attention} attention, {self.products} products"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and on what grounds.

    Args:
        kernels: The fastest combination for rows like those it was measured on.
        milliseconds: Of every combination that gives the same vectors.
        default_attention: For rows that are much longer.
        longest: Tokens of a row up to which the chosen attention is taken.
    """

    kernels: Kernels
    milliseconds: dict[str, float]
    default_attention: str
    longest: int

    def attention_for(self, tokens: int) -> str:
        """Returns the attention implementation for rows of so many tokens."""
        return self.kernels.attention if tokens <= self.longest else self.default_attention


def product_choices(decoder: PreTrainedModel, *, computed_in: torch.dtype, device: torch.device) -> list[str]:
    """Returns the products worth measuring, the default first.

    Args:
        decoder: The decoder, its weights not packed.
        computed_in: Dtype of the computation; another than the weights' means autocast, which packed products ignore.
        device: On a GPU there is nothing to choose.
    """
    dtype = decoder.dtype
    if device.type != "cpu" or dtype != computed_in or not torch.backends.mkldnn.enabled:
        return ["default"]
    return ["default", "packed"] if can_pack(decoder, dtype=dtype, device=device) else ["default"]


def attention_choices(default: str, *, device: torch.device) -> list[str]:
    """Returns the attention implementations worth measuring, the default first.

    Args:
        default: What the model was loaded with.
        device: On a GPU SDPA is the fast one for every shape here.
    """
    if device.type != "cpu" or default not in ("sdpa", "eager"):
        return [default]
    return [default, *(name for name in ("sdpa", GROUPED) if name != default)]


def use_kernels(decoder: PreTrainedModel, kernels: Kernels) -> None:
    """Sets the decoder to a combination."""
    use_attention(decoder, kernels.attention)
    if kernels.products != "packed":
        unpack(decoder)
    elif not is_packed(decoder):
        pack(decoder)


def use_attention(decoder: PreTrainedModel, attention: str) -> None:
    """Sets the decoder to an attention implementation."""
    if attention_of(decoder) != attention:
        decoder.set_attn_implementation(attention)


def choose_kernels(
    decoder: PreTrainedModel,
    compute: Callable[[], torch.Tensor],
    *,
    products: Sequence[str],
    attentions: Sequence[str],
    dtype: torch.dtype,
    tokens: int,
) -> Choice:
    """Measures and leaves the decoder set to the best.

    Args:
        decoder: The decoder to set.
        compute: Runs a few real rows and returns their vectors, `[B, D]`.
        products: As `product_choices` gives them.
        attentions: As `attention_choices` gives them.
        dtype: Of the computation; decides how far vectors may differ.
        tokens: Of a row that `compute` runs.
    """
    best = Kernels(attentions[0], products[0])
    use_kernels(decoder, best)
    seconds, reference = measure(compute)
    measured = {best: seconds}
    for field, values in (("products", products[1:]), ("attention", attentions[1:])):
        for choice in [replace(best, **{field: value}) for value in values]:
            try:
                use_kernels(decoder, choice)
                seconds, vectors = measure(compute, give_up_after=HOPELESS * measured[best])
            except UNUSABLE as failure:
                log.info("%s: cannot be used (%s)", choice, one_line(failure))
                continue
            if (error := relative_error(vectors, reference)) > ROUNDING.get(dtype, ROUNDING[torch.bfloat16]):
                log.info("%s: not used, its vectors differ by %.2g", choice, error)
                continue
            measured[choice] = seconds
            if measured[best] >= SMALLEST_GAIN * seconds:
                best = choice
    use_kernels(decoder, best)
    milliseconds = {str(choice): round(1000 * value, 2) for choice, value in measured.items()}
    log.info("model.tune: %s (milliseconds: %s)", best, ", ".join(f"{n} {v:.0f}" for n, v in milliseconds.items()))
    return Choice(best, milliseconds, default_attention=attentions[0], longest=LENGTHS_ALIKE * tokens)


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
