"""What memvec needs of transformers that transformers keeps private, in one place; checked with transformers 5.24."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

INSTALLED = "_output_capturing_hooks_installed"


def commit_of(config: PreTrainedConfig) -> str | None:
    """Returns the Hub's commit that a configuration was loaded at, or None."""
    commit: Any = getattr(config, "_commit_hash", None)
    return None if commit is None else str(commit)


def has_state_hooks(module: nn.Module) -> bool:
    """Whether transformers has added the hooks with which it keeps hidden states."""
    return INSTALLED in vars(module)


def forget_state_hooks(module: nn.Module) -> None:
    """Has transformers add those hooks anew when it needs them."""
    vars(module).pop(INSTALLED, None)


def cut_matrices(decoder: PreTrainedModel, mesh: DeviceMesh, plan: dict[str, str]) -> None:
    """Cuts a decoder's matrices over a mesh by a tensor-parallel plan.

    The plan names layers by a wildcard; transformers writes it out, part by part, when it loads a model sharded.
    """
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism  # slow to import, and rare

    apply_tensor_parallelism(decoder, mesh, decoder._expand_parallel_plan(plan))


def forget_rope_deltas(model: nn.Module) -> None:
    """Has a vision-language model count positions anew: it keeps how far images have moved those of its last rows."""
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            vars(module)["rope_deltas"] = None
