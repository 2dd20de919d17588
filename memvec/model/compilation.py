"""Compiles the parts of a decoder that hold no cache.

In: a decoder. Out: the same decoder, its norms and feed-forward blocks, or whole layers, compiled with dynamic shapes.
Blocks that are packed (`memvec.model.packing`) are fused already and stay as they are.

How: `torch.compile` region by region. All layers share one compiled norm and one compiled block, so it costs seconds
where the whole model costs minutes; and what holds the cache stays outside, since there every layer would be compiled
anew until the recompile limit stops it. Rows without padding (`memvec.model.unpadded`) have no cache: there one layer
is compiled for all of them. Where no compiler is installed the decoder stays as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel

from memvec.errors import one_line
from memvec.model.packing import PackedGatedBlock
from memvec.model.torch_internals import compile_module, forget_compiled

FEED_FORWARD = ("mlp", "feed_forward")
log = logging.getLogger(__name__)


def compile_regions(
    decoder: PreTrainedModel, compute: Callable[[], object], *, layers: Sequence[nn.Module] = ()
) -> float | None:
    """Compiles norms and feed-forward blocks, or whole layers, in place.

    Args:
        decoder: The decoder.
        compute: Runs one real batch, which is when the compiler works and can fail.
        layers: The decoder's layers, where they hold no cache and are compiled whole.

    Returns:
        The seconds it took; None where there is no compiler that works.
    """
    start = time.perf_counter()
    regions = list(layers) or [module for name, module in decoder.named_modules() if _is_region(name, module)]
    for region in regions:
        compile_module(region)
    try:
        compute()
    except Exception as error:  # the compiler, the linker and their environment fail in ways of their own
        forget_compiled(decoder)
        said = one_line(getattr(error, "inner_exception", error))  # dynamo wraps what the backend raises
        log.warning("model.compile: the compiler cannot be used (%s); continuing without it", said)
        return None
    seconds = time.perf_counter() - start
    kinds = "layers" if layers else "norms and feed-forward blocks"
    log.info("model.compile: %d %s are compiled, in %.0f s", len(regions), kinds, seconds)
    return seconds


def _is_region(name: str, module: nn.Module) -> bool:
    if isinstance(module, PackedGatedBlock):
        return False
    return name.rpartition(".")[2] in FEED_FORWARD or type(module).__name__.endswith("Norm")
