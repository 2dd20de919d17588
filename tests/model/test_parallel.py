"""Which part of the weights a process keeps, and which models cannot be cut; test_ranks.py computes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from memvec.errors import ModelError
from memvec.model.backbone import Backbone
from memvec.model.parallel import shard_weights, weights_mesh
from tests.helpers.models import load_backbone
from tests.helpers.refusals import refused

SIX = 6


@pytest.fixture(scope="module", autouse=True)
def six_processes() -> Iterator[None]:
    """A process group of six, of which this process is the first and the others never answer."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=SIX)
    yield
    torch.distributed.destroy_process_group()


def mesh_of(data_parallel: int, tensor_parallel: int) -> torch.distributed.device_mesh.DeviceMesh:
    return init_device_mesh(
        "cpu", (data_parallel, tensor_parallel), mesh_dim_names=("data_parallel", "tensor_parallel")
    )


def numbers_here(backbone: Backbone) -> int:
    """How many weights this process holds; views of larger tensors count in full."""
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in backbone.parameters()]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() // 4 for part in local}.values())


def test_the_dimension_that_shares_the_weights_is_told() -> None:
    assert weights_mesh(None) is None
    assert weights_mesh(mesh_of(SIX, 1)).mesh_dim_names == ("data_parallel",)  # type: ignore[union-attr]
    inner = weights_mesh(mesh_of(3, 2))  # three groups of two, each with a copy
    assert inner is not None
    assert (inner.mesh_dim_names, inner.size()) == (("tensor_parallel",), 2)


@pytest.mark.parametrize(("sizes", "share"), [((SIX, 1), SIX), ((3, 2), 2)], ids=["fsdp", "tensor parallel"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_a_process_keeps_its_part_of_the_weights_alone(
    architecture: str, sizes: tuple[int, int], share: int, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(model_folders(architecture))
    whole = numbers_here(backbone)
    mesh = weights_mesh(mesh_of(*sizes))
    assert mesh is not None
    shard_weights(backbone, mesh)
    assert whole / share <= numbers_here(backbone) < 1.5 * whole / share  # norms and uneven cuts are the rest


@pytest.mark.parametrize(
    ("architecture", "processes", "found", "advice"),
    [
        ("llama", 3, "its 2 key-value heads cannot be divided over 3 processes", "name a tensor_parallel_size"),
        ("gpt2", 2, "transformers has no tensor-parallel plan for it", "trainer=fsdp shards any model"),
    ],
)
def test_a_model_that_cannot_be_cut_is_an_error_of_one_line(
    architecture: str, processes: int, found: str, advice: str, model_folders: Callable[[str], Path]
) -> None:
    backbone = load_backbone(model_folders(architecture))
    mesh = weights_mesh(mesh_of(SIX // processes, processes))
    assert mesh is not None
    with refused(ModelError, type(backbone.decoder).__name__, found=found, advice=advice):
        shard_weights(backbone, mesh)
