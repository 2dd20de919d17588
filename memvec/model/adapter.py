"""A LoRA adapter: where it is, what of it memvec takes, and merging it into the model that it adapts.

In: a folder or Hub name, with `adapter_config.json` and the weights as peft saves them. Out: what identifies it, and a
model whose matrices hold it and whose modules are those it had before.

How: peft lays the adapter's low-rank matrices beside the model's weights, loads them, merges and removes them. Why
merged: kernels, sharding and the shared prefix are made for the model's own modules, and a merged one is as fast as the
model alone. Why only some options go to peft: an adapter is a stranger's, and its configuration can name a Python
module to import (`megatron_core`), layers to copy, or a way to change the model's own weights first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from memvec.digest import folder_digest
from memvec.errors import MemvecError, ModelError, one_line
from memvec.extras import import_extra
from memvec.model.refusals import model_errors, reason_of
from memvec.quiet import without_peft_warnings

OPTION = "model.adapter"
CONFIG = "adapter_config.json"
SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
COMMIT = re.compile(r"[0-9a-f]{40}")
KIND = "LORA"
LAID_IN = "memvec"  # the name under which peft keeps it beside the model's weights
# What adds a low-rank update to a weight, or puts a module that was saved in another's place.
USED = (
    *("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "modules_to_save", "trainable_token_indices"),
)
# What describes an adapter, or mattered only while it was trained.
IGNORED = (
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "runtime_config", "megatron_core", "loftq_config", "eva_config"),
)
INITIALISATION = "init_lora_weights"
# Other ways to begin leave part of the adapter in the model's own weights.
INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")
MOST_RANKS = 2**16
MISFIT = "does not fit the model, or cannot be merged"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that is there.

    Args:
        name: As the user named it.
        folder: Where its files lie.
        digest: What identifies it: a Hub adapter's commit, or a digest of a folder's files.
        options: What its configuration says, as far as it is used.
        base: The name of the model it was made for; None is not known.
    """

    name: str
    folder: Path
    digest: str
    options: dict[str, Any]
    base: str | None

    def merge_into(self, model: PreTrainedModel) -> None:
        """Adds it to a model's weights, in place.

        Args:
            model: The whole language model.

        Raises:
            ExtraError: peft is not installed.
            ModelError: It was made for another model, or its weights cannot be read.
        """
        peft = _peft()
        try:
            with without_peft_warnings():
                weights = peft.load_peft_weights(str(self.folder), device="cpu")
                part = _adapted_part(model, weights)
                _untie(part, weights)
                both = peft.PeftModel(part, peft.LoraConfig(**self.options, init_lora_weights=False), LAID_IN)
                found = peft.set_peft_model_state_dict(both, weights, adapter_name=LAID_IN)
                missing = [key for key in found.missing_keys if f".{LAID_IN}" in key]
                for keys, what in ((found.unexpected_keys, "have no place in it"), (missing, "are missing")):
                    if keys:
                        weights_of = f"{len(keys)} weights {what}, such as {min(keys)!r}"
                        raise ModelError(OPTION, self.name, found=f"{MISFIT}: {weights_of}")
                # In the weights' own dtype: bfloat16 vectors are then off by 0.0196 of their length, by 0.0192 where
                # the sum is rounded from float32, which takes twice the memory, and unmerged by 0.0185.
                both.merge_and_unload(safe_merge=True)
        except MemvecError:
            raise
        except Exception as error:  # peft raises whatever it has for what is not as it expects
            raise ModelError(OPTION, self.name, found=f"{MISFIT}: {reason_of(error)}") from error


def find_adapter(name: str, *, use_safetensors: bool) -> Adapter:
    """Returns the adapter of a name.

    Args:
        name: A folder, a Hub name, or a Hub name at a revision (`owner/name@revision`).
        use_safetensors: Whether pickled weights, which can run code, are refused.

    Raises:
        ExtraError: peft is not installed.
        ModelError: There is no adapter, or none that can be merged.
    """
    folder, commit = _located(name, use_safetensors=use_safetensors)
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(file, found=one_line(error)) from error
    if not isinstance(config, dict):
        raise ModelError(file, found=f"holds {type(config).__name__}", allowed="a JSON object")
    if config.get("peft_type") != KIND:
        kind = config.get("peft_type")
        raise ModelError(OPTION, name, found=f"a {kind} adapter, which cannot be merged into the weights", allowed=KIND)
    options = _used_options(config, name)
    if not (folder / SAFE).is_file():
        if not (folder / PICKLED).is_file():
            raise ModelError(OPTION, name, found="holds no weights", allowed=f"{SAFE} beside its {CONFIG}")
        if use_safetensors:
            found = f"only pickled weights ({PICKLED}), which can run code when they are loaded"
            raise ModelError(OPTION, name, found=found, advice="model.use_safetensors=false allows that")
    base = config.get("base_model_name_or_path")
    digest = commit or folder_digest(folder, (CONFIG, SAFE, PICKLED))
    return Adapter(name, folder, digest, options, base if isinstance(base, str) else None)


def at_commit(name: str, digest: str) -> str:
    """Returns the name of the adapter that was there when its digest was taken, whatever its main branch is now."""
    return f"{name.partition('@')[0]}@{digest}" if COMMIT.fullmatch(digest) else name


def _located(name: str, *, use_safetensors: bool) -> tuple[Path, str | None]:
    """Returns the folder of an adapter, and the commit of one from the Hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ModelError(OPTION, name, found="no adapter there", allowed=f"a folder with {CONFIG}")
        return folder, None
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(OPTION, name, found="no such folder")
    repository, _, revision = name.partition("@")
    with model_errors(OPTION, name):
        found = find_adapter_config_file(repository, revision=revision or None)
        if found is None:
            raise ModelError(OPTION, name, found="no such folder, and the Hub gives no such adapter")
        folder = Path(found).parent  # named by the commit, in the Hub's cache
        for weights in (SAFE,) if use_safetensors else (SAFE, PICKLED):
            if cached_file(repository, weights, revision=folder.name, _raise_exceptions_for_missing_entries=False):
                break
    return folder, folder.name


def _used_options(config: dict[str, Any], adapter: str) -> dict[str, Any]:
    """Returns what peft is told, and refuses an adapter that takes more than that."""
    default = _peft().LoraConfig()
    for name, value in config.items():
        if name in (*USED, *IGNORED, INITIALISATION) or not value or value == getattr(default, name, None):
            continue
        found = f"its {name} is set, which is not supported"
        raise ModelError(OPTION, adapter, found=found, advice="merge it with peft, and name the result")
    if config.get(INITIALISATION) not in INITIALISATIONS:
        found = f"its {INITIALISATION} is {config[INITIALISATION]!r}, which changed the model's own weights too"
        advice = "convert it with peft (`path_initial_model_for_weight_conversion`)"
        raise ModelError(OPTION, adapter, found=found, advice=advice)
    patterns = config.get("rank_pattern") or {}
    for rank in (config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])):
        if type(rank) is not int or not 0 < rank <= MOST_RANKS:
            raise ModelError(OPTION, adapter, found=f"a rank of {rank!r}", allowed=f"1 to {MOST_RANKS:,}")
    return {name: config[name] for name in USED if config.get(name) is not None}


def _adapted_part(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> Any:
    """Returns what the weights' names begin at: the whole model, or the model without its head."""
    inner: Any = model.base_model
    adapted = _adapted_modules(weights)
    in_whole, in_inner = ({name for name, _ in part.named_modules()} for part in (model, inner))
    return inner if adapted & in_inner and not adapted & in_whole else model


def _untie(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Gives a head weights of its own where it shares those of embeddings that the adapter changes."""
    embeddings, head, adapted = model.get_input_embeddings(), model.get_output_embeddings(), _adapted_modules(weights)
    is_adapted = any(module is embeddings and name in adapted for name, module in model.named_modules())
    if is_adapted and isinstance(head, nn.Module) and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def _adapted_modules(weights: dict[str, torch.Tensor]) -> set[str]:
    return {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in weights if ".lora_" in key}


def _peft() -> Any:
    return import_extra("peft", extra="adapter", purpose=OPTION)
