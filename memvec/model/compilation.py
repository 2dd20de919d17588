"""Compiles the parts of a decoder that hold no cache, where that pays.

In: a decoder, and a function that runs a batch through it. Out: the same decoder, its norms and feed-forward blocks, or
whole layers, compiled with dynamic shapes. Blocks that are packed (`memvec.model.packing`) are fused already and stay
as they are; weights whose packing gained little give way to compiled layers.

How: `torch.compile` region by region. All layers share one compiled norm and one compiled block, so it costs seconds
where the whole model costs minutes; and what holds the cache stays outside, since there every layer would be compiled
anew until the recompile limit stops it. Rows without padding (`memvec.model.unpadded`) have no cache: there one layer
is compiled for all of them. Where no compiler is installed the decoder stays as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from memvec.errors import one_line
from memvec.model.backbone import Backbone, decoder_layers
from memvec.model.packing import PackedGatedBlock, is_packed, pack, unpack
from memvec.model.torch_internals import compile_module, forget_compiled
from memvec.model.tuning import measure

# With fewer seconds left to compute, compiling takes longer than compiled layers save: half of them on a GPU, a tenth
# on a processor. With fewer batches left, there cannot be so many, or finding out takes too large a part of them.
SECONDS_TO_PAY, SECONDS_TO_PAY_ON_CPU = 60.0, 600.0
BATCHES_TO_PAY, BATCHES_TO_PAY_ON_CPU = 16, 256
# Compiled layers were 1.1 to 1.16 times as fast as plain ones on a processor, and no compiler takes packed weights:
# those that gained more than this stay packed.
MOST_GAIN_OF_COMPILING = 1.2
FEED_FORWARD = ("mlp", "feed_forward")

log = logging.getLogger(__name__)


def has_enough(batches: float, *, on: torch.device, seconds: float | None = None) -> bool:
    """Whether so much is left to compute that compiling may pay.

    Args:
        batches: How many there are.
        on: Where they are computed.
        seconds: How long one takes; None where that is not measured yet.
    """
    on_cpu = on.type == "cpu"
    if seconds is None:
        return batches >= (BATCHES_TO_PAY_ON_CPU if on_cpu else BATCHES_TO_PAY)
    return batches * seconds >= (SECONDS_TO_PAY_ON_CPU if on_cpu else SECONDS_TO_PAY)


def compile_decoder(
    backbone: Backbone, compute: Callable[[], torch.Tensor], *, whole_layers: bool, unless_slower_than: float
) -> float | None:
    """Compiles whole layers, or what packed weights and a cache leave to compile; undoes it where that is not faster.

    Args:
        backbone: Holds the decoder.
        compute: Runs one real batch; its result is in host memory.
        whole_layers: Whether layers hold no cache. A layer within which a state is taken is not compiled whole.
        unless_slower_than: Seconds that the batch took before.

    Returns:
        The seconds it took; None where nothing is compiled.
    """
    decoder = backbone.decoder
    backbone.trace()  # whose hooks are not for a compiler
    layers = list(decoder_layers(decoder) or ()) if whole_layers else []
    if layers and backbone.takes_states_within(layers):
        layers = []
    gives_way = bool(layers) and is_packed(decoder)
    if gives_way:
        unpack(decoder)
    seconds = compile_regions(decoder, compute, layers=layers)
    if seconds is not None and unless_slower_than < torch.inf and measure(compute, calls=2)[0] > unless_slower_than:
        log.info("model.compile: compiled layers are not faster, and are not taken")
        forget_compiled(decoder)
        seconds = None
    if gives_way and seconds is None:
        pack(decoder)
    return seconds


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
