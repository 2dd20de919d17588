"""Takes the last real token's state out of a batch of hidden states."""

from __future__ import annotations

import torch


def last_token(hidden: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Returns each row's hidden state at its last real token.

    Args:
        hidden: Hidden states, `[B, T, D]`, rows padded on the right.
        length: Tokens of each row without padding, `[B]`, at least 1.

    Returns:
        `[B, D]`, of the dtype of `hidden`.
    """
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, length - 1]  # [B, T, D] -> [B, D]
