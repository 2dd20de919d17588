"""The loop that memvec replaces: one entry at a time through the full model, every layer's states kept.

Everything that memvec computes is compared with this, so it stays as plain as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """Returns the hidden state of each prompt's last token, `[N, D]` float32.

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
        inputs = tokenizer(template.replace("{text}", text), return_tensors="pt")
        assert max_length is None or inputs["input_ids"].shape[1] <= max_length
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
        )
        vectors.append(outputs.hidden_states[layer][0, -1].float())
    return torch.stack(vectors)
