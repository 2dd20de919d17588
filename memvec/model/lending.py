"""A model and a tokenizer that a program holds and lends for the time of a call.

In: any transformers model (causal language model, decoder alone, vision-language model, `PeftModel` with its adapter
active) and a tokenizer or processor. Out: the decoder inside and the tokenizer inside; and a context in which the model
is in evaluation mode without gradients, after which every module is in the mode it was in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from memvec.errors import ModelError
from memvec.model.refusals import refuse_kind


def decoder_of(model: Any) -> PreTrainedModel:
    """Returns the part of a model that makes hidden states, adapters inside its layers included.

    Raises:
        ModelError: It is no transformers model, or one whose adapter does not stand inside its layers.
    """
    model = getattr(model, "_orig_mod", model)  # what `torch.compile` wraps: its hidden states are not to be had
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            kind = type(model.active_peft_config).__name__
            raise ModelError("model", found=f"an adapter that adds tokens ({kind})", allowed="LoRA and its like")
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise ModelError("model", found=f"found {type(model).__name__}", allowed="a name, folder or transformers model")
    refuse_kind(model.config, "model")
    inner: Any = model
    decoder: PreTrainedModel = inner.get_decoder()
    return decoder


def tokenizer_of(tokenizer: Any) -> Any:
    """Returns the tokenizer, which a processor holds."""
    return getattr(tokenizer, "tokenizer", tokenizer)


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and every module back into the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def lent_tokenizer(tokenizer: Any) -> Iterator[None]:
    """Puts a tokenizer's truncation and padding back as they were."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def weights_digest(model: nn.Module) -> str:
    """Returns a hex SHA-256 over names, types and content of a model's weights; it reads all of them."""
    state = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor):
            content = weight.detach().cpu().contiguous()
            state.update(f"{name}:{content.dtype}:{list(content.shape)};".encode())
            state.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
