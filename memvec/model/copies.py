"""Copies between the host and a device that neither waits for.

In: a batch in host memory, or predictions on the device. Out: the same on the other side, or on its way there.

How: through pinned memory, since a copy from or to pageable memory waits for all that the device was given before. What
comes back is there once an event has happened, which is recorded behind the copy: asking for the numbers themselves
would wait for the next batch too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from memvec.data.collator import Batch
from memvec.data.trie import TokenTrie


class CopiedBatch(NamedTuple):
    """Row numbers and predictions on their way from the device: there once `done`, where there is one, has happened."""

    rows: torch.Tensor
    predictions: torch.Tensor
    done: torch.cuda.Event | None

    def wait(self) -> None:
        """Waits until both are there."""
        if self.done is not None:
            self.done.synchronize()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns a batch with its tensors on a device, or on their way there."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    trie = batch["trie"]
    return Batch(
        index=move(batch["index"]),
        input_ids=move(batch["input_ids"]),
        length=move(batch["length"]),
        prefix_length=batch["prefix_length"],
        trie=None if trie is None else move_trie(trie, move),
    )


def move_trie(trie: TokenTrie, move: Callable[[torch.Tensor], torch.Tensor]) -> TokenTrie:
    """Returns a trie with each of its tensors moved."""
    parts = trie._asdict().items()
    moved: dict[str, Any] = {name: move(part) for name, part in parts if isinstance(part, torch.Tensor)}
    return trie._replace(**moved)


def to_host(rows: torch.Tensor, predictions: torch.Tensor) -> CopiedBatch:
    """Starts the copy of row numbers and predictions to the host."""
    if predictions.device.type != "cuda":
        return CopiedBatch(rows.cpu(), predictions.cpu(), None)
    host = torch.empty(predictions.shape, dtype=predictions.dtype, pin_memory=True)
    host.copy_(predictions, non_blocking=True)
    host_rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return CopiedBatch(host_rows, host, done)
