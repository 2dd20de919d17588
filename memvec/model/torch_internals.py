"""What memvec needs of torch that torch keeps private, in one place; checked with torch 2.13.

In: a dtype, a weight, a module. Out: what this processor multiplies, oneDNN's blocked weights and its fused matmuls, a
module's hooks, a module without its compiled form. The oneDNN operators are those that torch.compile's freezing emits
(torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

# What a weight may be packed for when its batch is not known; any number of rows works.
TYPICAL_ROWS = 1024


def has_fast_matmul(dtype: torch.dtype) -> bool:
    """Whether this processor's matmuls of a dtype are no slower than those of float32.

    torch emulates those that it lacks, and bfloat16's dot product without tiles is slow on the Intel processors that
    have tiles (AMX), which many hosts hide: 167 GFLOP/s on a Xeon of 2023, where float32 has 308. Where torch was built
    without oneDNN, which knows, all are taken to be fast.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not hides_tiles(_capabilities())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def hides_tiles(capabilities: Mapping[str, Any]) -> bool:
    """Whether an Intel processor's other instructions say that it has tiles, and it does not show them.

    Args:
        capabilities: What a processor can, as `torch.cpu.get_capabilities` names it.
    """
    is_intel = str(capabilities.get("cpu_name", "")).startswith("Intel")
    return is_intel and bool(capabilities.get("avx512_fp16")) and not capabilities.get("amx_bf16")


def _capabilities() -> Mapping[str, Any]:
    """Returns what this processor can; nothing where torch does not say."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def has_packed_matmul() -> bool:
    """Whether this build of torch multiplies weights in oneDNN's layout."""
    return bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight `[out, in]` in oneDNN's layout; `to_dense` gives it back bit for bit."""
    return cast(torch.Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS))


def packed_linear(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, *, activation: tuple[str, str] = ("none", "")
) -> torch.Tensor:
    """Maps `[..., in]` to `[..., out]` by a packed weight, an activation (its name, its variant) applied."""
    name, variant = activation
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], variant))


def packed_linear_times(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, factor: torch.Tensor
) -> torch.Tensor:
    """Maps `[..., in]` to `[..., out]` by a packed weight, multiplied by `factor` of that shape."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, factor, packed, bias, "mul"))


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called when a module is."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def hook_ids(module: nn.Module) -> tuple[int, ...]:
    """Returns the numbers, none of which is given twice, of what is called before a module and after it."""
    return (*module._forward_pre_hooks, *module._forward_hooks)


def forward_hooks(module: nn.Module) -> Any:
    """Returns a module's forward hooks by their numbers; removing one there removes it."""
    return module._forward_hooks


def compile_module(module: nn.Module) -> None:
    """Compiles what a module computes, for any shape.

    Its `forward`, not the module (`module.compile()`): that would compile its hooks too, and anew for every new one.
    """
    vars(module)["forward"] = torch.compile(module.forward, dynamic=True)


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Has a module and those within it, some of which a program has compiled in place, run as they were written.

    What was compiled before a hook was added does not call it, or is compiled anew for each until torch gives up.
    """
    compiled: list[tuple[dict[str, Any], str, Any]] = []
    for each in module.modules():
        held = vars(each)
        if (forward := held.get("forward")) is not None and hasattr(forward, "_torchdynamo_orig_callable"):
            compiled.append((held, "forward", forward))
            held["forward"] = forward._torchdynamo_orig_callable
        if held.get("_compiled_call_impl") is not None:
            compiled.append((held, "_compiled_call_impl", held["_compiled_call_impl"]))
            held["_compiled_call_impl"] = None
    try:
        yield
    finally:
        for held, name, before in compiled:
            held[name] = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """Makes it an error to wait for a CUDA device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls it a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def forget_compiled(module: nn.Module) -> None:
    """Undoes `compile_module`, on a module and all within."""
    for each in module.modules():
        vars(each).pop("forward", None)
