"""A model and a tokenizer that a program holds and lends for the time of a call.

In: any transformers model (causal language model, decoder alone, vision-language model, `PeftModel` with its adapter
active) and a tokenizer or processor. Out: the decoder inside and the tokenizer inside; and a context in which the model
is in evaluation mode without gradients, after which every module is in the mode it was in. Encoders that are lent the
same model take turns, whatever threads they are called from.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from memvec.errors import ConfigError, ModelError
from memvec.model.refusals import refuse_kind
from memvec.model.torch_internals import hook_ids, uncompiled


def decoder_of(model: Any) -> PreTrainedModel:
    """Returns the part of a model that makes hidden states, adapters inside its layers included.

    Raises:
        ModelError: It is no transformers model, or one whose adapter does not stand inside its layers.
    """
    model = getattr(model, "_orig_mod", model)  # what `torch.compile` wraps: its hidden states are not to be had
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        config = model.active_peft_config
        if getattr(config, "is_prompt_learning", False):
            found = f"an adapter that adds tokens ({type(config).__name__})"
            raise ModelError("model", found=found, allowed="LoRA and its like")
        if getattr(config, "alora_invocation_tokens", None):
            raise ModelError(
                "model", found="an adapter that some tokens switch on (aLoRA)", allowed="LoRA and its like"
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise ModelError("model", found=f"found {type(model).__name__}", allowed="a name, folder or transformers model")
    refuse_kind(model.config, "model")
    inner: Any = model
    decoder: PreTrainedModel = inner.get_decoder()
    if isinstance(inner, FSDPModule) and decoder is not inner:
        found = f"FSDP2 shards all of {type(inner).__name__}, whose forward alone gathers its embeddings"
        raise ModelError("model", found=found, advice="lend a model of which FSDP2 shards the layers or the decoder")
    return decoder


def tokenizer_of(tokenizer: Any) -> Any:
    """Returns the tokenizer, which a processor holds."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def count_tokens(tokenizer: Any) -> int:
    """Returns how many tokens a tokenizer or processor knows; 0 where it does not say."""
    inner = tokenizer_of(tokenizer)
    return len(inner) if hasattr(inner, "__len__") else 0


def refuse_other_tokens(processor: Any, text: str) -> None:
    """Refuses a processor that makes other tokens of a text than the tokenizer that it holds.

    Args:
        processor: What a program lends, a tokenizer or a processor.
        text: What is compared.

    Raises:
        ConfigError: It does: some add a token at the end, or leave one out.
    """
    inner = tokenizer_of(processor)
    if inner is processor or not callable(processor):
        return
    try:
        found, expected = ([int(token) for token in each(text=[text])["input_ids"][0]] for each in (processor, inner))
    except Exception:  # whatever it raises, it takes no text alone
        return
    if found != expected:
        tokens = f"makes other tokens of a text ({len(found)}) than its tokenizer ({len(expected)})"
        advice = "give processor.tokenizer, if those are meant"
        raise ConfigError("tokenizer", type(processor).__name__, found=tokens, advice=advice)


def state_of(model: nn.Module) -> tuple[object, ...]:
    """Returns which modules, hooks and attention a model has: what decides, besides its weights, how it is computed.

    A hook, such as one that steers, may be right for a row alone and wrong for a batch; and another attention is to be
    taken as it is.
    """
    modules = tuple((id(module), type(module), hook_ids(module)) for module in model.modules())
    return (getattr(getattr(model, "config", None), "_attn_implementation", None), modules)


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and every module back into the mode it was in; one call after the other."""
    with _lock_of(model), uncompiled(model):
        before = [(module, module.training) for module in model.modules()]
        try:
            for module, _ in before:
                module.training = False
            yield
        finally:
            for module, training in before:
                module.training = training


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_lock = threading.Lock()


def _start_in_process() -> None:
    global _lock
    _locks.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_start_in_process)


def _lock_of(model: nn.Module) -> threading.RLock:
    """Returns the lock of a model, the same for everyone who is lent it."""
    with _lock:
        return _locks.setdefault(model, threading.RLock())


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
    """Returns a hex SHA-256 over names, types and content of a model's weights; it reads all of them.

    Which of peft's adapters are active counts too.

    Raises:
        ModelError: A weight is of a kind whose content cannot be read.
    """
    state = hashlib.sha256()
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters"):
            state.update(f"{name}:{module.active_adapters}:{module.disable_adapters};".encode())
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor):
            state.update(f"{name}:{weight.dtype}:{list(weight.shape)};".encode())
            try:
                content = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            except (RuntimeError, NotImplementedError, TypeError) as error:
                kind = f"weights of {type(weight).__name__} on {weight.device}, whose content cannot be read"
                raise ModelError("model", found=kind) from error
            state.update(content.tobytes())
    return state.hexdigest()
