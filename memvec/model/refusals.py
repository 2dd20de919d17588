"""What memvec cannot use, said before any weights are loaded: what it is, and what to do about it.

In: a model folder or Hub name, its configuration, its tokenizer. Out: nothing, or one line.

Why apart from transformers' own checks: of an adapter it says that the model is unknown, of an encoder that weights are
missing, and of a number that cannot be it divides by zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils.peft_utils import find_adapter_config_file

from memvec.errors import MemvecError, ModelError, one_line
from memvec.quiet import hub_warns_once

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers")
SIZES = ("hidden_size", "n_embd", "d_model", "vocab_size", "num_attention_heads", "num_key_value_heads", "n_head")
# A model is built layer by layer before its weights are read.
MOST_LAYERS = 10_000
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
# What a tokenizer is read from, or made of.
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
ADAPTER_WEIGHTS = "adapter_model"
# Of a library's message: some list every architecture there is.
MOST_CHARACTERS = 300


@contextmanager
def model_errors(option: str, name: str) -> Iterator[None]:
    """Turns what transformers and huggingface_hub raise for a model that is not there into one line.

    Args:
        option: Which names it, such as `model.name_or_path`.
        name: Its value: a folder or a Hub name.
    """
    try:
        with hub_warns_once():
            yield
    except MemvecError:
        raise
    except Exception as error:  # a stranger's files can make the libraries raise whatever they have
        if "trust_remote_code" in str(error):
            found, advice = "it comes with code of its own", "model.trust_remote_code=true lets that run"
        elif Path(name).is_dir():
            found, advice = f"the folder cannot be loaded: {reason_of(error)}", ""
        else:
            found, advice = f"no such folder, and the Hub gives no such model: {reason_of(error)}", ""
        raise ModelError(option, name, found=found, advice=advice) from error


def reason_of(error: Exception) -> str:
    """Returns an error's message, of which the libraries often put the essence into a second line."""
    message = " ".join(str(error).split())
    cut = message if len(message) <= MOST_CHARACTERS else f"{message[:MOST_CHARACTERS]}…"
    return f"{type(error).__name__}: {cut}" if isinstance(error, LookupError) or not cut else cut


def refuse_adapter(location: str, *, revision: str | None) -> None:
    """Refuses what holds an adapter and not the model that it adapts.

    Raises:
        ModelError: It is one.
    """
    folder = Path(location)
    if folder.is_dir() and any(file for file in _weights(folder) if not file.stem.startswith(ADAPTER_WEIGHTS)):
        return
    file = find_adapter_config_file(location, revision=revision)
    if file is None:
        return
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        kind, base = content.get("peft_type") or "PEFT", content.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(file, found=one_line(error)) from error
    found = f"a {kind} adapter of {base!r}, without that model's weights"
    if kind != "LORA":
        raise ModelError("model.name_or_path", location, found=found, allowed="a model")
    shown = base if isinstance(base, str) else "its base model"
    advice = f"name both: model.name_or_path={shown} model.adapter={location}"
    raise ModelError("model.name_or_path", location, found=found, advice=advice)


def refuse_missing_weights(folder: Path, *, use_safetensors: bool) -> None:
    """Refuses a model folder without weights that may be loaded, or with only some of them.

    Raises:
        ModelError: It is one.
    """
    named = ("model.name_or_path", folder)
    found = sorted(file.name for file in _weights(folder))
    usable = [name for name in found if name.endswith(".safetensors") or not use_safetensors]
    if not usable:
        if found:
            pickled = f"only pickled weights ({found[0]}), which can run code when they are loaded"
            raise ModelError(*named, found=pickled, advice="model.use_safetensors=false allows that")
        raise ModelError(*named, found="the folder holds no weights", allowed="*.safetensors beside its config.json")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(part for part in parts if not (folder / part).is_file())
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(index, found=f"no index of a model's weights: {one_line(error)}") from error
        if missing:
            absent = f"{len(missing)} of {len(parts)} files of weights are missing, such as {missing[0]}"
            raise ModelError(*named, found=absent)


def refuse_numbers(content: Any, location: str) -> None:
    """Refuses a configuration, as its file has it, whose sizes no model can have.

    Raises:
        ModelError: It is one.
    """
    named = ("model.name_or_path", location)
    if not isinstance(content, Mapping):
        raise ModelError(*named, found=f"config.json holds {type(content).__name__}", allowed="a JSON object")
    kind = content.get("model_type")
    if kind is not None and not (isinstance(kind, str) and kind.isprintable()):
        raise ModelError(*named, found=f"config.json: model_type={kind!r}", allowed="the name of an architecture")
    for name, value in _sizes(content):
        if type(value) is not int or value < 1:
            raise ModelError(*named, found=f"config.json: {name}={value!r}", allowed="an integer of at least 1")
        if name in DEPTHS and value > MOST_LAYERS:
            raise ModelError(*named, found=f"config.json: {name}={value}", allowed=f"1 to {MOST_LAYERS:,}")


def refuse_kind(config: PreTrainedConfig, *named: str) -> None:
    """Refuses a model that is no causal decoder, where its configuration says so.

    Args:
        config: The model's.
        *named: What the message calls it: an option and its value, or a name.

    Raises:
        ModelError: It is one.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(*named, found=f"an encoder-decoder model ({kind})", advice="memvec needs a causal decoder")
    sees_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if sees_both_ways and not getattr(config, "is_decoder", False) and not getattr(config, "causal", False):
        advice = "memvec needs a causal decoder, whose last token has seen the whole prompt"
        raise ModelError(*named, found=f"an encoder ({kind}), in which a token sees those behind it", advice=advice)
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise ModelError(*named, found=f"no language model ({kind})", advice="memvec needs a causal decoder")


def refuse_missing_tokenizer(folder: Path) -> None:
    """Refuses a model folder without a tokenizer's files, of which transformers would make one without words.

    Raises:
        ModelError: It is one.
    """
    if not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
        allowed = "a tokenizer.json beside its config.json"
        raise ModelError("model.name_or_path", folder, found="the folder holds no tokenizer", allowed=allowed)


def refuse_tokenizer(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, location: str) -> None:
    """Refuses a tokenizer that knows no words, or one that belongs to a larger model.

    A special token may lie beyond the embeddings, as an added padding token does: a text never becomes one, and of a
    template that names one `PromptEncoder` says so.

    Args:
        tokenizer: The tokenizer.
        config: Of the model it is used with.
        location: The model's folder or Hub name.

    Raises:
        ModelError: It is one.
    """
    named = ("model.name_or_path", location)
    special = set(tokenizer.all_special_ids)
    plain = {number: token for token, number in tokenizer.get_vocab().items() if number not in special}
    if not plain:
        raise ModelError(*named, found="the model has no tokenizer", allowed="a tokenizer.json beside its config.json")
    rows = config.get_text_config().vocab_size
    largest = max(plain)
    if largest >= rows:
        token = f"{plain[largest]!r} is number {largest:,}, the model has {rows:,}"
        advice = "use the tokenizer that the model was trained with"
        raise ModelError(*named, found=f"its tokenizer has tokens that the model lacks: {token}", advice=advice)


def _weights(folder: Path) -> list[Path]:
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def _sizes(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Returns the sizes that a configuration and those within it name; a list has one for each layer."""
    for name, value in content.items():
        if name in (*SIZES, *DEPTHS) and value is not None and not isinstance(value, list | Mapping):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _sizes(value)
