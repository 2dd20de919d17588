"""Collective decisions for processes that hold one copy of the weights together (FSDP2, tensor parallel).

In: what one process has found out. Out: what all of them act upon.

Where weights are sharded (`memvec.model.parallel`), every forward pass is collective: a process that runs one more or
one fewer than the others waits for ever, and they for it. So all of them run equally many batches (dummy batches make
up for the difference), and what decides whether a forward pass runs (a signal, a probe's error, a row to compute again)
is agreed upon here. Where every process holds a copy of its own, each decides for itself and nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed

from memvec.model.parallel import DATA_PARALLEL, in_words, weights_mesh

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

CPU = torch.device("cpu")


@dataclass(frozen=True)
class WeightGroup:
    """The processes that hold one copy of the weights together, seen from one of them.

    Args:
        mesh: What `memvec.model.parallel.weights_mesh` returned; None where each process holds its own copy.
        device: Of this process, for what it sends.
    """

    mesh: DeviceMesh | None = None
    device: torch.device = CPU

    @classmethod
    def of_strategy(cls, mesh: DeviceMesh | None, device: torch.device) -> WeightGroup:
        """Returns the group within the device mesh of Lightning's strategy."""
        return cls(weights_mesh(mesh), device)

    @property
    def is_sharded(self) -> bool:
        """Whether several processes hold one copy of the weights."""
        return self.mesh is not None

    @property
    def has_own_batches(self) -> bool:
        """Whether the group's processes compute batches of their own, of which all must run equally many."""
        return self.mesh is not None and self.mesh.mesh_dim_names == (DATA_PARALLEL,)

    @property
    def is_first_with_its_batches(self) -> bool:
        """Whether no process of a lower rank computes the same batches; of a tensor-parallel group the first writes."""
        return self.mesh is None or self.has_own_batches or self.mesh.get_local_rank() == 0

    def maximum(self, value: float) -> float:
        """Returns the largest value that any process of the group gives."""
        if self.mesh is None:
            return value
        largest = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self.mesh.get_group())
        return float(largest)

    def union(self, rows: list[int]) -> list[int]:
        """Returns the row numbers that any process of the group gives, each once, in order."""
        if self.mesh is None:
            return sorted(set(rows))
        gathered: list[list[int]] = [[] for _ in range(self.mesh.size())]
        torch.distributed.all_gather_object(gathered, rows, group=self.mesh.get_group())
        return sorted({row for some in gathered for row in some})

    def __str__(self) -> str:
        """Returns how the weights are held, for logs and the manifest: `whole`, or such as `tensor_parallel over 8`."""
        return in_words(self.mesh)
