"""Shards one copy of a model's weights over several devices, for a model that does not fit on one.

In: a loaded backbone and the device mesh of Lightning's `ModelParallelStrategy`. Out: the same backbone, which holds
this process's part of the weights.

How, by the mesh:

- `tensor_parallel` (`trainer=tensor_parallel`): every matrix is cut, by the plan that transformers keeps for the
  architecture, and every process computes its heads and columns of the same batch; a sum over the processes ends each
  block. Each tensor-parallel group has a copy of the weights.
- `data_parallel` (`trainer=fsdp`): every process keeps a slice of every layer (torch's `fully_shard`, FSDP2), gathers
  a layer when it needs it and lets go of it behind; every process computes batches of its own.

Why the whole model is loaded on the host first: weights of the dtype they are stored in are mapped from the file, so
all processes of a machine share one copy in the page cache, and only a process's own part is ever copied.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from memvec.errors import ModelError
from memvec.model.backbone import Backbone, decoder_layers
from memvec.model.transformers_internals import cut_matrices

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

TENSOR_PARALLEL = "tensor_parallel"
DATA_PARALLEL = "data_parallel"

log = logging.getLogger(__name__)


def weights_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Returns the processes, one dimension of the mesh, that hold one copy of the weights together.

    Args:
        mesh: Of the strategy; None where every process holds a copy of its own.

    Returns:
        The dimension, whose name says how; None where every process holds a copy of its own.
    """
    if mesh is None:
        return None
    return next((mesh[name] for name in (TENSOR_PARALLEL, DATA_PARALLEL) if mesh[name].size() > 1), None)


def in_words(mesh: DeviceMesh | None) -> str:
    """Returns how the weights are held, for logs and the manifest: `whole`, or such as `tensor_parallel over 8`.

    Args:
        mesh: What `weights_mesh` returned.
    """
    return "whole" if mesh is None or mesh.mesh_dim_names is None else f"{mesh.mesh_dim_names[0]} over {mesh.size()}"


def shard_weights(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Cuts the backbone's weights in place.

    Args:
        backbone: With all its weights, on the host.
        mesh: What `weights_mesh` returned.

    Raises:
        ModelError: This model cannot be sharded so.
    """
    decoder = backbone.decoder
    if mesh.mesh_dim_names == (TENSOR_PARALLEL,):
        _cut_matrices(decoder, mesh)
    else:
        backbone.trace()  # transformers knows no hidden states of the classes that FSDP2 makes of its own
        _cut_layers(decoder, mesh)
    log.info("the weights are sharded: %s", in_words(mesh))


def _cut_matrices(decoder: PreTrainedModel, mesh: DeviceMesh) -> None:
    from transformers.distributed.tensor_parallel import get_kv_heads_per_rank  # slow to import, and rare

    name, plan, config = type(decoder).__name__, dict(decoder.tp_plan), decoder.config.get_text_config()
    if not plan:
        found = "transformers has no tensor-parallel plan for it"
        raise ModelError(name, found=found, advice="trainer=fsdp shards any model")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if get_kv_heads_per_rank(plan, heads, mesh.size()) is None:
        found = f"its {heads} key-value heads cannot be divided over {mesh.size()} processes"
        raise ModelError(name, found=found, advice="name a tensor_parallel_size that divides them, or use trainer=fsdp")
    cut_matrices(decoder, mesh, plan)


def _cut_layers(decoder: PreTrainedModel, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import fully_shard

    layers = decoder_layers(decoder)
    if layers is None:
        raise ModelError(type(decoder).__name__, found="its layers cannot be told, so its weights cannot be sharded")
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh)  # what stands outside the layers: embeddings and the final norm
