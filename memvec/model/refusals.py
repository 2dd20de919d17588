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
            reason = "it comes with code of its own; model.trust_remote_code=true lets that run"
        elif Path(name).is_dir():
            reason = f"the folder cannot be loaded: {reason_of(error)}"
        else:
            reason = f"no such folder, and the Hub gives no such model: {reason_of(error)}"
        raise ModelError(f"{option}={name}: {reason}") from error


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
        raise ModelError(f"{file}: {one_line(error)}") from error
    shown = base if isinstance(base, str) else "its base model"
    advice = f"name both: model.name_or_path={shown} model.adapter={location}" if kind == "LORA" else "allowed: a model"
    raise ModelError(
        f"model.name_or_path={location}: a {kind} adapter of {base!r}, without that model's weights; {advice}"
    )


def refuse_missing_weights(folder: Path, *, use_safetensors: bool) -> None:
    """Refuses a model folder without weights that may be loaded, or with only some of them.

    Raises:
        ModelError: It is one.
    """
    named = f"model.name_or_path={folder}"
    found = sorted(file.name for file in _weights(folder))
    usable = [name for name in found if name.endswith(".safetensors") or not use_safetensors]
    if not usable:
        if found:
            raise ModelError(
                f"{named}: only pickled weights ({found[0]}), which can run code when they are loaded; "
                "model.use_safetensors=false allows that"
            )
        raise ModelError(f"{named}: the folder holds no weights; allowed: *.safetensors beside its config.json")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(part for part in parts if not (folder / part).is_file())
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{index}: no index of a model's weights: {one_line(error)}") from error
        if missing:
            raise ModelError(
                f"{named}: {len(missing)} of {len(parts)} files of weights are missing, such as {missing[0]}"
            )


def refuse_numbers(content: Any, location: str) -> None:
    """Refuses a configuration, as its file has it, whose sizes no model can have.

    Raises:
        ModelError: It is one.
    """
    named = f"model.name_or_path={location}: config.json"
    if not isinstance(content, Mapping):
        raise ModelError(f"{named} holds {type(content).__name__}; allowed: a JSON object")
    kind = content.get("model_type")
    if kind is not None and not (isinstance(kind, str) and kind.isprintable()):
        raise ModelError(f"{named}: model_type={kind!r}; allowed: the name of an architecture")
    for name, value in _sizes(content):
        if type(value) is not int or value < 1:
            raise ModelError(f"{named}: {name}={value!r}; allowed: an integer of at least 1")
        if name in DEPTHS and value > MOST_LAYERS:
            raise ModelError(f"{named}: {name}={value}; allowed: 1 to {MOST_LAYERS:,}")


def refuse_kind(config: PreTrainedConfig, named: str) -> None:
    """Refuses a model that is no causal decoder, where its configuration says so.

    Args:
        config: The model's.
        named: What the message calls it.

    Raises:
        ModelError: It is one.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(f"{named}: an encoder-decoder model ({kind}); memvec needs a causal decoder")
    sees_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if sees_both_ways and not getattr(config, "is_decoder", False) and not getattr(config, "causal", False):
        raise ModelError(
            f"{named}: an encoder ({kind}), in which a token sees those behind it; memvec needs a causal decoder, "
            "whose last token has seen the whole prompt"
        )
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise ModelError(f"{named}: no language model ({kind}); memvec needs a causal decoder")


def refuse_missing_tokenizer(folder: Path) -> None:
    """Refuses a model folder without a tokenizer's files, of which transformers would make one without words.

    Raises:
        ModelError: It is one.
    """
    if not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
        raise ModelError(
            f"model.name_or_path={folder}: the folder holds no tokenizer; allowed: a tokenizer.json beside its "
            "config.json"
        )


def refuse_tokenizer(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, named: str) -> None:
    """Refuses a tokenizer that knows no words, or one that belongs to a larger model.

    A special token may lie beyond the embeddings, as an added padding token does: a text never becomes one, and of a
    template that names one `PromptEncoder` says so.

    Args:
        tokenizer: The tokenizer.
        config: Of the model it is used with.
        named: What the message calls them.

    Raises:
        ModelError: It is one.
    """
    special = set(tokenizer.all_special_ids)
    plain = {number: token for token, number in tokenizer.get_vocab().items() if number not in special}
    if not plain:
        raise ModelError(f"{named}: the model has no tokenizer; allowed: a tokenizer.json beside its config.json")
    rows = config.get_text_config().vocab_size
    largest = max(plain)
    if largest >= rows:
        raise ModelError(
            f"{named}: its tokenizer has tokens that the model lacks: {plain[largest]!r} is number {largest:,}, the "
            f"model has {rows:,}; use the tokenizer that the model was trained with"
        )


def _weights(folder: Path) -> list[Path]:
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def _sizes(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Returns the sizes that a configuration and those within it name; a list has one for each layer."""
    for name, value in content.items():
        if name in (*SIZES, *DEPTHS) and value is not None and not isinstance(value, list | Mapping):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _sizes(value)
