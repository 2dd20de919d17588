"""The tokens of a batch's prompts without padding, and those that several prompts begin with once.

In: the prompts of a batch, one after the other. Out: a `TokenTrie`: one sequence of tokens, each with its position, and
for every prompt where its tokens stand in that sequence.

How: prompts are sorted by their tokens, so that one shares with all before it just what it shares with its neighbour;
what it does not share is appended. In a causal model the state of a token depends on the tokens before it alone, so
prompts that begin alike have the same states there (arXiv 2601.15013). Pure numpy over `[B, T]`, no loop over rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class TokenTrie(NamedTuple):
    """A batch's prompts as one sequence of U tokens.

    input_ids: `[U]` int64.
    position_ids: `[U]` int64, where in its prompt a token stands.
    query_offsets: `[B + 1]` int32: prompt b, in sorted order, appends the tokens from `b` to `b + 1`.
    keys: `[S]` int64, for each token of each prompt, in sorted order, where it stands among the U.
    key_offsets: `[B + 1]` int32, where in `keys` each prompt begins.
    last: `[B]` int64, where each prompt's last token stands, in the order of the batch.
    longest_query: Most tokens that one prompt appends.
    longest_key: Tokens of the longest prompt.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    query_offsets: torch.Tensor
    keys: torch.Tensor
    key_offsets: torch.Tensor
    last: torch.Tensor
    longest_query: int
    longest_key: int


def build_trie(input_ids: NDArray[np.integer], length: NDArray[np.int64]) -> TokenTrie:
    """Returns the prompts of a batch without what they share.

    Args:
        input_ids: The prompts' tokens, one prompt after the other.
        length: Tokens of each prompt, `[B]`, each at least 1.
    """
    width = int(length.max())
    columns = np.arange(width)
    padded = np.zeros((len(length), width), dtype=">u4")  # big-endian: bytes sort as the numbers do
    padded[columns < length[:, None]] = input_ids + 1  # 0 is padding
    order = np.argsort(padded.view(f"S{4 * width}")[:, 0], kind="stable")
    padded, sorted_length = padded[order], length[order]

    shared = np.zeros(len(length), dtype=np.int64)  # with the prompt before
    shared[1:] = np.logical_and.accumulate((padded[1:] == padded[:-1]) & (padded[1:] > 0), axis=1).sum(axis=1)
    query_offsets = np.concatenate([[0], np.cumsum(sorted_length - shared)])
    real = columns < sorted_length[:, None]  # [B, T]
    own = (columns >= shared[:, None]) & real
    # A token that a prompt shares was appended by the last prompt before it that does not share that position.
    owner = np.maximum.accumulate(np.where(columns >= shared[:, None], np.arange(len(length))[:, None], 0), axis=0)
    keys = (query_offsets[owner] + columns - shared[owner])[real]
    key_offsets = np.concatenate([[0], np.cumsum(sorted_length)])
    last = np.empty(len(length), dtype=np.int64)
    last[order] = keys[key_offsets[1:] - 1]
    return TokenTrie(
        input_ids=torch.from_numpy(padded[own].astype(np.int64) - 1),
        position_ids=torch.from_numpy(np.broadcast_to(columns, own.shape)[own]),
        query_offsets=torch.from_numpy(query_offsets.astype(np.int32)),
        keys=torch.from_numpy(keys),
        key_offsets=torch.from_numpy(key_offsets.astype(np.int32)),
        last=torch.from_numpy(last),
        longest_query=int((sorted_length - shared).max()),
        longest_key=width,
    )
