"""The loop that memvec replaces: one entry at a time through the full model, every layer's states kept.

Everything that memvec computes is compared with this, so it stays as plain as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def full_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Loads a model folder whole, language-model head and all."""
    auto = AutoModelForImageTextToText if folder.name == "qwen2_5_vl" else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype).eval()


def relative_errors(vectors: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Returns each row's relative error, `[N]`, of vectors `[N, D]`."""
    return (vectors - reference).norm(dim=1) / reference.norm(dim=1)


@torch.no_grad()
def reference_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    template: str,
    layer: int = -1,
    max_length: int | None = None,
) -> torch.Tensor:
    """Returns the hidden state of each prompt's last token, `[N, D]` float32 on the model's device.

    Args:
        model: A full causal language model (or image-text-to-text model), language-model head and all.
        tokenizer: Its tokenizer.
        texts: N texts, none of which is truncated or spells a special token.
        template: The prompt, with `{text}`.
        layer: Position in `hidden_states`.
        max_length: Fails where a prompt is longer.
    """
    vectors = []
    for text in texts:
        inputs = tokenizer(template.replace("{text}", text), return_tensors="pt").to(model.device)
        assert max_length is None or inputs["input_ids"].shape[1] <= max_length
        outputs = model(**inputs, output_hidden_states=True)
        vectors.append(outputs.hidden_states[layer][0, -1].float())
    return torch.stack(vectors)
