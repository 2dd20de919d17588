"""Decode steps that are recorded as a CUDA graph and replayed.

In: a model, as `generate` calls it with preallocated keys and values (`memvec.generation.cache`). Out: the same scores
of a next token; while the context is entered, a step of one token a row replays a graph.

How: for the rows of a batch one step is recorded, over the keys' and values' whole buffers, with a mask over what is
still empty: attending to that costs a GPU less than launching a step does. What changes from step to step stands in
tensors: tokens, positions, mask, the place to write to. Any other call goes to the model itself, as do all where a step
cannot be recorded.

Why: a step launches hundreds of kernels of a few microseconds each, and a host launches them more slowly than a GPU
computes them: 26 windows took 8.7 s with Qwen3-0.6B's shape on an H100, replayed 3.2 s.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from memvec.errors import one_line
from memvec.generation.cache import PreallocatedLayer, has_room, lengthen
from memvec.model.prefix import cache_argument
from memvec.model.torch_internals import no_waiting
from memvec.model.tuning import UNUSABLE

# What `generate` says of a step besides the cache; a step with anything else is the model's own.
TENSORS = {"input_ids", "attention_mask", "position_ids"}
CONSTANTS = {"use_cache", "return_dict", "logits_to_keep", "cache_position"}

log = logging.getLogger(__name__)


class StepReplay:
    """A context in which a model replays its decode steps.

    Args:
        model: The whole language model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.has_recorded = False
        self._model = model
        self._forward = model.forward
        self._cache_argument = cache_argument(model)
        self._step: RecordedStep | None = None
        self._is_recordable = model.config.get_text_config()._attn_implementation == "sdpa"

    def __enter__(self) -> StepReplay:
        """Takes the place of the model's `forward`, whose signature `generate` reads."""

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(*args, **kwargs)

        self._before = vars(self._model).get("forward")
        vars(self._model)["forward"] = forward
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives the place back."""
        del vars(self._model)["forward"]
        if self._before is not None:
            vars(self._model)["forward"] = self._before
        self._step = None

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        cache: Any = kwargs.get(self._cache_argument)
        if args or not self._is_recordable or not self._is_step(kwargs, cache):
            return self._forward(*args, **kwargs)
        if self._step is None or not self._step.is_of(cache):
            self._step = None  # its memory is free for the next
            self._record(kwargs)
            if self._step is None:  # not within `except`: the error would hold what was recorded so far
                return self._forward(**kwargs)
        logits = self._step(kwargs["input_ids"])
        lengthen(cache, cache.get_seq_length() + 1)
        return CausalLMOutputWithPast(logits=logits, **{self._cache_argument: cache})

    def _record(self, kwargs: Mapping[str, Any]) -> None:
        """Records a step, or says that none is replayed from now on."""
        try:
            self._step = RecordedStep(self._forward, self._cache_argument, kwargs)
        except UNUSABLE as error:
            log.info("decode steps are not replayed (%s)", one_line(error))
            self._is_recordable = self.has_recorded = False
        else:
            self.has_recorded = True

    def _is_step(self, kwargs: Mapping[str, Any], cache: Any) -> bool:
        """Whether a call is of one token a row, for which there is room, and says nothing that is not recorded."""
        given = {name for name, value in kwargs.items() if value is not None} - {self._cache_argument}
        return (
            {"input_ids", "position_ids"} <= given <= TENSORS | CONSTANTS
            and kwargs["input_ids"].shape[1] == 1
            and kwargs["position_ids"].shape == kwargs["input_ids"].shape
            and has_room(cache)
            and cache.get_seq_length() < cache.layers[0].room
        )


class RecordedStep:
    """One decode step over a batch's keys and values; on a processor it is computed each time.

    Args:
        forward: The model's own.
        cache_argument: How it calls its cache.
        kwargs: With which `generate` calls it for the first of these steps.
    """

    def __init__(self, forward: Any, cache_argument: str, kwargs: Mapping[str, Any]) -> None:
        cache, input_ids = kwargs[cache_argument], kwargs["input_ids"]
        place = cache.get_seq_length()
        self._of = _buffers(cache)
        self._forward = forward
        self._input_ids = input_ids.clone()
        self._position_ids = kwargs["position_ids"].clone()
        self._place = torch.tensor([place], device=input_ids.device)
        for layer in cache.layers:
            layer.clear_room()
        room = cache.layers[0].room
        self._mask = torch.zeros((len(input_ids), 1, 1, room), dtype=torch.bool, device=input_ids.device)
        known = kwargs.get("attention_mask")  # none where no row is padded
        self._mask[:, 0, 0, :place] = True if known is None else known[:, :place].bool()
        layers: Any = [RecordedLayer(layer, self._place) for layer in cache.layers]
        self._cache = {cache_argument: Cache(layers=layers)}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._record()

    def is_of(self, cache: Cache) -> bool:
        """Whether these are the keys and values it was recorded over: as rows leave, they move to others."""
        return self._of == _buffers(cache)

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the scores of the tokens after these, `[B, 1]` -> `[B, 1, V]`, valid until the next call."""
        self._input_ids.copy_(input_ids)
        if self._graph is None:
            self._logits = self._compute()
        else:
            self._graph.replay()
        self._place += 1
        self._position_ids += 1
        return self._logits

    def _record(self) -> None:
        """Records the step; it is computed once before, outside of the graph, for what is set up at a first call.

        A step that waits for the device cannot be recorded. That first time tells, without a capture that would fail
        half way: torch leaves the thread on the capture's stream then.
        """
        if self._place.device.type != "cuda":
            self._compute()
            return
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream), no_waiting():
                self._compute()
        finally:
            current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread copies and flushes meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self._compute()
        finally:
            torch.cuda.set_stream(current)
        self._graph = graph

    def _compute(self) -> torch.Tensor:
        self._mask.index_fill_(3, self._place, True)
        tensors = {"input_ids": self._input_ids, "attention_mask": self._mask, "position_ids": self._position_ids}
        output = self._forward(**tensors, **self._cache, use_cache=True, return_dict=True)
        logits: torch.Tensor = output.logits
        return logits


class RecordedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, as a recorded step sees them: whole, written to at one place.

    Args:
        layer: Holds them. Where rows leave it and it takes new buffers, the old ones are free.
        place: Of the step's token, `[1]` int64.
    """

    def __init__(self, layer: PreallocatedLayer, place: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self.layer = layer
        self.place = place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes a token's keys and values `[B, H, 1, K]`; returns all there is room for, `[B, H, room, K]`."""
        keys, values = self.layer.buffers()
        return keys.index_copy_(2, self.place, key_states), values.index_copy_(2, self.place, value_states)

    def get_seq_length(self) -> int:
        """Returns the tokens before the step, as far as shapes can tell: all there is room for, but one."""
        return self.layer.room - 1


def _buffers(cache: Any) -> tuple[object, ...]:
    """Returns what tells a cache's buffers apart from all others while a step that was recorded over them is held."""
    layer = cache.layers[0]
    keys, _ = layer.buffers()
    return (id(layer), *keys.shape)  # rows only ever leave
