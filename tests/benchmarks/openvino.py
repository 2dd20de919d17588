"""The contestant OpenVINO: length-sorted padded batches through the converted backbone.

optimum-intel does not install beside the transformers that memvec needs, so the model is converted as it does it: by
tracing, with free batch and sequence lengths. It gets what helps it: memvec's own grouping by length, and the last
token taken inside the graph, so that it need not hand out every token's state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, PreTrainedModel

from memvec.data.sampler import LengthGroupedBatchSampler
from memvec.model.pooling import last_token
from tests.benchmarks.task import Task, quiet_libraries
from tests.benchmarks.turn import Run, Turn, fastest, timed
from tests.benchmarks.worker import call_once


def openvino(task: Task) -> Run:
    """The best of several token budgets; every batch computes the shared prefix anew."""
    from openvino import Core

    path = task.scratch / "openvino.xml"
    if not path.exists():
        call_once("openvino's conversion", _convert_to_openvino, (task,), (str(path),))  # its memory is not counted
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if task.dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": task.threads,
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on all threads
    }
    compiled = Core().compile_model(path, "CPU", hints)
    tokenizer = task.tokenizer()

    def encode(texts: Sequence[str], max_tokens: int) -> Turn:
        ids = [np.asarray(row) for row in tokenizer(task.prompts(texts))["input_ids"]]
        lengths = np.asarray([len(row) for row in ids])
        groups = [(np.arange(len(ids)), lengths)]
        plan = LengthGroupedBatchSampler(groups, batch_size=len(ids), max_tokens=max_tokens)
        batches = []
        for rows in plan:
            mask = np.arange(lengths[rows].max()) < lengths[rows][:, None]  # [B, T]
            input_ids = np.zeros(mask.shape, dtype=np.int64)
            input_ids[mask] = np.concatenate([ids[row] for row in rows])
            batches.append((rows, input_ids, mask.astype(np.int64)))

        def compute() -> NDArray[np.float32]:
            vectors = np.concatenate([compiled((input_ids, mask))[0] for _, input_ids, mask in batches])
            in_order = np.empty_like(vectors)
            in_order[np.concatenate([rows for rows, _, _ in batches])] = vectors
            return in_order

        vectors, seconds = timed(task, compute)
        return Turn(vectors, seconds, plan.padding_share, {"max_tokens": max_tokens})

    return partial(encode, max_tokens=fastest(task, (512, 1024, 2048, 4096), encode))


class _LastState(nn.Module):
    """A backbone that returns the last real token's state, `[B, D]`, so that OpenVINO need not hand out all states."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return last_token(output.last_hidden_state, attention_mask.sum(1))


def _convert_to_openvino(task: Task) -> Callable[[str], None]:
    def convert(path: str) -> None:
        from openvino import PartialShape, Type, convert_model, save_model

        warnings.simplefilter("ignore")  # tracing warns of every branch; the vectors are compared all the same
        backbone = AutoModel.from_pretrained(task.model, dtype=torch.float32).eval()
        example = {name: torch.ones(2, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        inputs = [(name, PartialShape([-1, -1]), Type.i64) for name in example]
        save_model(convert_model(_LastState(backbone), example_input=example, input=inputs), path, False)

    quiet_libraries()
    return convert
