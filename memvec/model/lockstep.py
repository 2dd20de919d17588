"""Keeps the processes in step that hold one copy of the weights together.

In: what one process has found out. Out: what all of them act upon.

Where weights are shared out (`memvec.model.parallel`), every forward is a conversation: a process that runs one more or
one fewer than the others waits for ever, and they for it. So all of them run equally many batches (the data module
plans fillers), and what decides whether a forward runs (a signal, a probe's error, a row to compute again) is agreed
upon here. Where every process holds a copy of its own, each decides for itself and nothing is sent.
"""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh

from memvec.model.parallel import DATA_PARALLEL, weights_mesh


def partners(trainer: pl.Trainer) -> DeviceMesh | None:
    """Returns the processes that hold one copy of the weights together, or None where each holds its own."""
    return weights_mesh(trainer.lightning_module.device_mesh)


def has_own_batches_in_step(trainer: pl.Trainer) -> bool:
    """Whether processes with batches of their own must run equally many of them."""
    mesh = partners(trainer)
    return mesh is not None and mesh.mesh_dim_names == (DATA_PARALLEL,)


def is_to_be_written(trainer: pl.Trainer, batch: int) -> bool:
    """Whether this process is the one to write the vectors of its batch at this position.

    Not a filler; and of a tensor-parallel group, whose processes all compute the same batch, only the first writes.
    """
    return is_first_with_its_batches(trainer) and not cast(Any, trainer).datamodule.sampler.is_filler(batch)


def is_first_with_its_batches(trainer: pl.Trainer) -> bool:
    """Whether no process of a lower rank computes the same batches."""
    mesh = partners(trainer)
    return mesh is None or has_own_batches_in_step(trainer) or mesh.get_local_rank() == 0


def agreed_maximum(trainer: pl.Trainer, value: float) -> float:
    """Returns the largest value that any of the partners gives."""
    mesh = partners(trainer)
    if mesh is None:
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=mesh.get_group())
    return float(largest)


def agreed_rows(trainer: pl.Trainer, rows: list[int]) -> list[int]:
    """Returns the row numbers that any of the partners gives, each once, in order."""
    mesh = partners(trainer)
    if mesh is None:
        return sorted(set(rows))
    gathered: list[list[int]] = [[] for _ in range(mesh.size())]
    torch.distributed.all_gather_object(gathered, rows, group=mesh.get_group())
    return sorted({row for some in gathered for row in some})
