"""What a model's configuration says of the prompts it takes.

In: a configuration of transformers. Out: the most tokens of a prompt, how many tokens there are, and the lengths behind
which the model computes in another way.
"""

from __future__ import annotations

from transformers import PreTrainedConfig


def prompt_limit(config: PreTrainedConfig) -> int | None:
    """Returns the most tokens a model was made for, or None where its configuration names no limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)  # as MPT says it
    return limit if isinstance(limit, int) and limit > 0 else None


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Returns how many tokens a model has embeddings for."""
    size: int = config.get_text_config().vocab_size
    return size


def length_boundaries(config: PreTrainedConfig) -> tuple[int, ...]:
    """Returns the lengths behind which a model computes in another way, the tokens before included; rising.

    LongRoPE has one set of frequencies for sequences up to the length it was pretrained with and another for longer
    ones, and transformers chooses by the longest sequence of a batch, padding included. (Dynamic NTK, which changes
    with every token, begins at `max_position_embeddings`, where prompts end.)
    """
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    # Of some models each kind of layer has its own.
    each = [ropes, *(own for own in ropes.values() if isinstance(own, dict))]
    lengths = {
        rope.get("original_max_position_embeddings", getattr(text, "original_max_position_embeddings", None))
        for rope in each
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su")
    }
    return tuple(sorted(length for length in lengths if isinstance(length, int)))


def attention_windows(config: PreTrainedConfig) -> tuple[int, ...]:
    """Returns the lengths behind which layers no longer see all tokens (sliding windows, chunks); rising.

    Each family has a name of its own for them. A number that only sounds like one costs a longer probe, no more.
    """
    fields = config.get_text_config().to_dict().items()
    sizes = {
        value for name, value in fields if type(value) is int and value > 0 and ("window" in name or "chunk" in name)
    }
    return tuple(sorted(sizes))
