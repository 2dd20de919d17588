"""Chooses the fastest kernels this processor has, by measuring them on real rows.

In: a decoder and a function that runs one real batch through it. Out: the decoder set to the fastest combination of

- the attention implementation (`sdpa` or `eager`: on short rows either may win, by up to 1.4 times);
- on a CPU in float32, the route of matrix products (MKL, or oneDNN by torch's `fp32_precision`: up to 2.4 times).

Why measure: which of them is faster differs by processor, dtype and row length, in opposite directions. Why the error
is checked too: the oneDNN route allows bfloat16 products, which a processor without bfloat16 tiles computes in exact
float32 and one with them (AMX) does not. A choice whose vectors differ from the default's by more than rounding is not
taken, however fast.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import median

import torch
from transformers import PreTrainedModel

from memvec.model.parity import relative_error

REPEATS = 3
# Less gain than this is noise, and the default stays.
SMALLEST_GAIN = 1.03
ROUNDING = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 0.02, torch.bfloat16: 0.05}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One combination.

    Args:
        attention: transformers' name of the attention implementation.
        products: torch's `fp32_precision` of oneDNN matrix products: `none` is torch's default route (MKL), `bf16`
            hands float32 products to oneDNN.
    """

    attention: str
    products: str = "none"

    def __str__(self) -> str:
        return f"{self.attention} attention, {'oneDNN' if self.products == 'bf16' else 'default'} products"


def candidates(default: str, *, dtype: torch.dtype, device: torch.device) -> list[Kernels]:
    """Returns the combinations worth measuring, the default first.

    Args:
        default: The attention implementation the model was loaded with.
        dtype: Of the weights.
        device: On a GPU nothing is measured: its SDPA is the fast one for every shape here.
    """
    if device.type != "cpu":
        return [Kernels(default)]
    attentions = [default, *({"sdpa", "eager"} - {default})] if default in ("sdpa", "eager") else [default]
    routes = ["none", "bf16"] if dtype == torch.float32 and torch.backends.mkldnn.enabled else ["none"]
    return [Kernels(attention, route) for attention, route in product(attentions, routes)]


def use_kernels(decoder: PreTrainedModel, kernels: Kernels) -> None:
    """Sets the decoder, and torch for this process, to a combination."""
    if decoder.config._attn_implementation != kernels.attention:
        decoder.set_attn_implementation(kernels.attention)
    set_products(kernels.products)


def get_products() -> str:
    """Returns the route of float32 matrix products on the CPU."""
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def set_products(route: str) -> None:
    """Sets the route of float32 matrix products on the CPU, for the whole process."""
    torch.backends.mkldnn.matmul.fp32_precision = route  # type: ignore[attr-defined]


def choose_kernels(
    decoder: PreTrainedModel, compute: Callable[[], torch.Tensor], choices: list[Kernels], *, dtype: torch.dtype
) -> tuple[Kernels, dict[str, float]]:
    """Measures every choice and leaves the decoder set to the best.

    Args:
        decoder: The decoder to set.
        compute: Runs one real batch and returns its vectors, `[B, D]`.
        choices: Combinations, the default first.
        dtype: Of the computation; decides how far vectors may differ.

    Returns:
        The choice, and the median milliseconds of every choice that could be used.
    """
    exact: list[Kernels] = []
    reference: torch.Tensor | None = None
    for choice in choices:
        use_kernels(decoder, choice)
        vectors = compute()  # also warms the kernels up
        reference = vectors if reference is None else reference
        error = relative_error(vectors, reference)
        if error <= ROUNDING[dtype]:
            exact.append(choice)
        else:
            log.info("%s: not used, its vectors differ by %.2g", choice, error)
    seconds: dict[Kernels, list[float]] = {choice: [] for choice in exact}
    for _ in range(REPEATS):  # interleaved, so that a busy moment of the machine hits all of them
        for choice in exact:
            use_kernels(decoder, choice)
            start = time.perf_counter()
            compute()
            seconds[choice].append(time.perf_counter() - start)
    medians = {choice: median(times) for choice, times in seconds.items()}
    best = min(exact, key=medians.__getitem__)
    if medians[exact[0]] < SMALLEST_GAIN * medians[best]:
        best = exact[0]
    use_kernels(decoder, best)
    return best, {str(choice): round(1000 * value, 2) for choice, value in medians.items()}
