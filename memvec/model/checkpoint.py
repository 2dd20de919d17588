"""A pretrained model that is not loaded yet: where it is and how it may be loaded.

In: a model folder, GGUF file or Hub name. Out: its configuration, its tokenizer, what identifies its weights, and the
weights themselves, as the decoder alone or as the whole language model.

How: transformers' Auto classes, whose many ways to fail become one line each. The decoder is that of `AutoModel`, so
that there is no language-model head, and of a vision-language model the text path only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from memvec.digest import folder_digest
from memvec.errors import ModelError
from memvec.model.adapter import Adapter, find_adapter
from memvec.model.backbone import gives_token_types, takes_token_types
from memvec.model.gguf import convert_gguf, find_gguf, is_gguf
from memvec.model.refusals import (
    model_errors,
    refuse_adapter,
    refuse_kind,
    refuse_missing_tokenizer,
    refuse_missing_weights,
    refuse_numbers,
    refuse_tokenizer,
)
from memvec.model.transformers_internals import commit_of
from memvec.quiet import without_loading_report

# A folder that no model has: transformers would add an adapter that lies beside a model's weights, where peft is there.
NO_ADAPTER = {"subfolder": "no-adapter"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model that is not loaded yet.

    Args:
        location: What `locate_model` returned.
        revision: Of a Hub model; None is its main branch.
        adapter: Folder or Hub name (`owner/name`, `owner/name@revision`) of a LoRA adapter that is merged into the
            weights; None is none.
        attn_implementation: transformers' name of the attention implementation; None is the model's default.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether only safetensors are loaded; a pickled checkpoint can run code.
    """

    location: str
    revision: str | None = None
    adapter: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The whole model's configuration.

        Raises:
            ModelError: There is no such model, or one that memvec cannot use.
        """
        folder = Path(self.location)
        with model_errors("model.name_or_path", self.location):
            refuse_adapter(self.location, revision=self.revision)
            content, _ = PreTrainedConfig.get_config_dict(self.location, revision=self.revision)
            refuse_numbers(content, self.location)
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.location, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
            refuse_kind(config, "model.name_or_path", self.location)
        if folder.is_dir():
            refuse_missing_weights(folder, use_safetensors=self.use_safetensors)
        _ = self.merged_adapter  # whether it can be used is said before anything is computed
        return config

    @cached_property
    def merged_adapter(self) -> Adapter | None:
        """The adapter that is merged into the weights, where there is one.

        Raises:
            ExtraError: peft is not installed.
            ModelError: There is no adapter of that name, or none that can be merged.
        """
        if self.adapter is None:
            return None
        adapter = find_adapter(self.adapter, use_safetensors=self.use_safetensors)
        if adapter.base is not None and Path(adapter.base).name != Path(self.location).name:
            log.info("%s: was made for %r, and is merged into %s", self.adapter, adapter.base, self.location)
        return adapter

    @property
    def digest(self) -> str:
        """What identifies the model's own weights: a Hub model's commit, or a digest of a folder's files."""
        folder = Path(self.location)
        if not folder.is_dir():
            return str(commit_of(self.config))
        return folder_digest(folder, ("*.safetensors", "*.bin", "config.json"))

    @property
    def identity(self) -> dict[str, str]:
        """What identifies the weights that are loaded, for a fingerprint: the model, and the adapter merged into it."""
        adapter = self.merged_adapter
        return {"model": self.digest, **({} if adapter is None else {"adapter": adapter.digest})}

    @property
    def takes_token_types(self) -> bool:
        """Whether its decoder is given the token types that its tokenizer gives (`memvec.model.backbone`)."""
        kind: Any = MODEL_MAPPING.get(type(self.config.get_text_config()), None)
        # Of some configurations there are several classes, and none where code comes with the model.
        return isinstance(kind, type) and takes_token_types(kind) and gives_token_types(self.load_tokenizer())

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the model's tokenizer.

        Raises:
            ModelError: There is no such model, or it has no tokenizer of its own.
        """
        config, folder = self.config, Path(self.location)
        if folder.is_dir():
            refuse_missing_tokenizer(folder)
        with model_errors("model.name_or_path", self.location):
            loaded = AutoTokenizer.from_pretrained(
                self.location, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
            tokenizer = cast(PreTrainedTokenizerFast, loaded)  # `PromptEncoder` refuses one that is not
            refuse_tokenizer(tokenizer, config, self.location)
        return tokenizer

    def load_decoder(self, dtype: torch.dtype) -> PreTrainedModel:
        """Loads the weights without a language-model head, in evaluation mode.

        Args:
            dtype: Of the weights.

        Raises:
            ModelError: There is no such model, or not all of its weights.
        """
        # An adapter names the modules of the whole model.
        auto = AutoModel if self.adapter is None else self._whole()
        model: Any = self._load(auto, dtype, needs_head=False)
        decoder: PreTrainedModel = model.get_decoder()  # of a vision-language model the text path; else the model
        return decoder

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """Loads the whole model, with its language-model head; as `load_decoder` does."""
        return self._load(self._whole(), dtype, needs_head=True)

    def _whole(self) -> Any:
        """Returns the Auto class of the whole model."""
        kind = type(self.config)
        sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
        return AutoModelForImageTextToText if sees else AutoModelForCausalLM

    def _load(self, auto: Any, dtype: torch.dtype, *, needs_head: bool) -> PreTrainedModel:
        """Loads a model as one of the Auto classes has it, and refuses one whose weights are not all there."""
        named = ("model.name_or_path", self.location)
        _ = self.config  # which says of a model that cannot be used what it is
        with model_errors("model.name_or_path", self.location), without_loading_report():
            model, found = auto.from_pretrained(
                self.location,
                revision=self.revision,
                dtype=dtype,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True if self.use_safetensors else None,  # None: pickled ones where there are no others
                ignore_mismatched_sizes=True,  # found out below, by name
                adapter_kwargs=NO_ADAPTER,
                output_loading_info=True,
            )
        if found["mismatched_keys"]:
            key, stored, expected = min(found["mismatched_keys"])
            raise ModelError(*named, found=f"{key!r} is of shape {list(stored)}, its config says {list(expected)}")
        inner = f"{model.base_model_prefix}." if model.base_model is not model and not needs_head else ""
        if missing := sorted(key for key in found["missing_keys"] if key.startswith(inner)):
            # transformers would fill them with random numbers and go on
            raise ModelError(*named, found=f"{len(missing)} weights are missing, the first {missing[0]!r}")
        if self.merged_adapter is not None:
            self.merged_adapter.merge_into(model)
        loaded: PreTrainedModel = model.requires_grad_(False).eval()
        return loaded


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
    allowed = "a model folder, a .gguf file, a Hub name"
    if path.is_file():
        raise ModelError("model.name_or_path", name_or_path, found="is a file", allowed=allowed)
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise ModelError("model.name_or_path", name_or_path, found="no such folder", allowed=allowed)
    return name_or_path
