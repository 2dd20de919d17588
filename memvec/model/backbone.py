"""Loads the part of a causal language model that makes hidden states.

In: a model folder, GGUF file or Hub name. Out: its tokenizer, and a `Backbone` that maps `input_ids` to the hidden
states of one layer.

How: `AutoModel`, so that there is no language-model head, and of a vision-language model the text decoder only; no
tuple of all layers' states, no cache unless asked. `layer=-1` is `last_hidden_state`, after the final norm; a lower
layer k is the output of the k-th decoder layer, before any norm, as `hidden_states[k]` has it, and the layers above k
are removed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import Cache

from memvec.data.reader import one_line
from memvec.errors import ConfigError, ModelError
from memvec.model.gguf import convert_gguf, find_gguf, is_gguf


@contextmanager
def _model_errors(name_or_path: str) -> Iterator[None]:
    """Turns what transformers and huggingface_hub raise for a model that is not there into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            reason = "it comes with code of its own; model.trust_remote_code=true lets that run"
        elif Path(name_or_path).is_dir():
            reason = f"the folder cannot be loaded: {one_line(error)}"
        else:
            reason = f"no such folder, and the Hub gives no such model: {one_line(error)}"
        raise ModelError(f"model.name_or_path={name_or_path}: {reason}") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silences the report that the head's weights are not used, which is what is wanted here."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def locate_model(name_or_path: str) -> str:
    """Returns what `from_pretrained` takes: a folder (a GGUF file is converted first) or a Hub name.

    Raises:
        ModelError: The path, GGUF file or package does not exist.
    """
    if is_gguf(name_or_path):
        return str(convert_gguf(find_gguf(name_or_path)))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ModelError(
            f"model.name_or_path={name_or_path}: is a file; allowed: a model folder, a .gguf file, a Hub name"
        )
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise ModelError(f"model.name_or_path={name_or_path}: no such folder")
    return name_or_path


def load_config(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Returns the whole model's configuration."""
    with _model_errors(name_or_path):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
    return config


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Returns the model's tokenizer."""
    with _model_errors(name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    return cast(PreTrainedTokenizerFast, tokenizer)  # `PromptEncoder` refuses one that is not


def prompt_limit(config: PreTrainedConfig) -> int | None:
    """Returns the most tokens the model was made for, or None where its configuration names no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def layer_position(config: PreTrainedConfig, layer: int) -> int:
    """Returns which of the model's hidden states is meant, from 0 (the embeddings) to the number of layers.

    Raises:
        ConfigError: The model has no such layer.
    """
    depth: int = config.get_text_config().num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ConfigError(f"model.layer={layer}: the model has {depth} layers; allowed: {-depth - 1} to {depth}")
    return layer % (depth + 1)


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList | None:
    """Returns a decoder's layers, or None where they cannot be told."""
    depth: int = decoder.config.get_text_config().num_hidden_layers
    lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)
    return next(lists, None)  # modules() yields outer modules first


def model_digest(name_or_path: str, config: PreTrainedConfig) -> str:
    """Returns what identifies the weights: a Hub model's commit, or a digest of a folder's files."""
    commit = getattr(config, "_commit_hash", None)
    folder = Path(name_or_path)
    if not folder.is_dir():
        return str(commit)
    return folder_digest(folder, ("*.safetensors", "*.bin", "config.json"))


def folder_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """Returns a hex SHA-256 over names and content of the files that match."""
    state = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        with file.open("rb") as stream:
            state.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()};".encode())
    return state.hexdigest()


class Backbone(nn.Module):
    """A decoder that returns one layer's hidden states.

    Args:
        decoder: The decoder, without a language-model head.
        layer: Which state: -1 is after the final norm, 0 the embeddings, k after k decoder layers; negative numbers
            count as in `hidden_states[layer]`.

    Raises:
        ConfigError: The decoder has no such layer.
        ModelError: A lower layer was asked for and this architecture's layers cannot be told.
    """

    def __init__(self, decoder: PreTrainedModel, *, layer: int = -1) -> None:
        super().__init__()
        self.decoder = decoder
        self.dimension: int = decoder.config.get_text_config().hidden_size
        depth: int = decoder.config.get_text_config().num_hidden_layers
        self._tapped: torch.Tensor | None = None
        position = layer_position(decoder.config, layer)
        if position < depth:
            self._tap(position, depth)
        # Lightning casts a half-precision module's buffers too, and rotary frequencies in bfloat16 are wrong positions.
        self._float32_buffers = {n: b for n, b in decoder.named_buffers() if b.dtype == torch.float32}

    def _tap(self, position: int, depth: int) -> None:
        """Removes the layers above `position` and keeps the state there, before the final norm gets it."""
        layers = decoder_layers(self.decoder)
        if layers is None:
            raise ModelError(f"{type(self.decoder).__name__}: its layers cannot be told; only model.layer=-1 works")
        del layers[max(position, 1) :]
        text_config = self.decoder.config.get_text_config()
        text_config.num_hidden_layers = len(layers)
        if getattr(text_config, "layer_types", None):
            text_config.layer_types = text_config.layer_types[: len(layers)]
        if position == 0:  # the state before the first layer, which stays since a decoder needs one
            layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            layers[-1].register_forward_hook(self._keep_output)

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tapped = args[0] if args else kwargs["hidden_states"]

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._tapped = output[0] if isinstance(output, tuple) else output

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Backbone:
        """Moves and casts like any module, but leaves float32 buffers float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, original in self._float32_buffers.items():
            parent, _, leaf = name.rpartition(".")
            moved = self.decoder.get_buffer(name)
            if moved.dtype != torch.float32:
                setattr(self.decoder.get_submodule(parent), leaf, original.to(moved.device))
        return self

    def forward(self, input_ids: torch.Tensor, *, cache: Cache | None = None) -> torch.Tensor:
        """Returns hidden states.

        Args:
            input_ids: `[B, T]` int64, right-padded; no mask is needed, since no token sees what stands right of it.
            cache: Keys and values of the tokens that come before `input_ids`, or None.

        Returns:
            `[B, T, D]`, of the model's dtype.
        """
        if cache is None:
            output = self.decoder(input_ids=input_ids, use_cache=False)
        else:
            output = self.decoder(input_ids=input_ids, past_key_values=cache, use_cache=True)
        if self._tapped is None:
            return output.last_hidden_state  # type: ignore[no-any-return]
        hidden, self._tapped = self._tapped, None
        return hidden


def load_backbone(
    name_or_path: str,
    *,
    dtype: torch.dtype,
    layer: int = -1,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
) -> Backbone:
    """Loads weights and returns the backbone, in evaluation mode.

    Args:
        name_or_path: What `locate_model` returned.
        dtype: Of the weights.
        layer: See `Backbone`.
        revision: Of a Hub model; None is its main branch.
        attn_implementation: transformers' name of the attention implementation; None is the model's default.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether only safetensors are loaded; a pickled checkpoint can run code.

    Raises:
        ModelError: There is no such model, or it has no causal decoder.
    """
    model: Any = _load_model(
        AutoModel,
        name_or_path,
        dtype=dtype,
        revision=revision,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        use_safetensors=use_safetensors,
    )
    decoder = model.get_decoder()  # of a vision-language model the text path; else the model itself
    return Backbone(decoder, layer=layer).eval()


def load_language_model(
    name_or_path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
) -> PreTrainedModel:
    """Loads the whole model, with its language-model head; arguments and errors as for `load_backbone`."""
    config = load_config(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    model: Any = _load_model(
        AutoModelForImageTextToText if sees else AutoModelForCausalLM,
        name_or_path,
        dtype=dtype,
        revision=revision,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        use_safetensors=use_safetensors,
    )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _load_model(
    auto: Any,
    name_or_path: str,
    *,
    dtype: torch.dtype,
    revision: str | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
    use_safetensors: bool,
) -> PreTrainedModel:
    """Loads a model as one of transformers' Auto classes has it, and refuses one whose weights are not all there."""
    with _model_errors(name_or_path), _quiet_loading():
        model, found = auto.from_pretrained(
            name_or_path,
            revision=revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
            ignore_mismatched_sizes=True,  # found out below, by name
            output_loading_info=True,
        )
    if found["mismatched_keys"]:
        key, stored, expected = min(found["mismatched_keys"])
        raise ModelError(
            f"model.name_or_path={name_or_path}: {key!r} is of shape {list(stored)}, its config says {list(expected)}"
        )
    if found["missing_keys"]:  # transformers would fill them with random numbers and go on
        missing = sorted(found["missing_keys"])
        raise ModelError(
            f"model.name_or_path={name_or_path}: {len(missing)} weights are missing, the first {missing[0]!r}"
        )
    if model.config.is_encoder_decoder:
        raise ModelError(f"model.name_or_path={name_or_path}: an encoder-decoder model; memvec needs a causal decoder")
    loaded: PreTrainedModel = model.requires_grad_(False)
    return loaded
