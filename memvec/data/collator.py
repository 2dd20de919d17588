"""Makes a padded tensor batch from rows of the tokenised dataset.

In: row numbers. Out: `{"index" [B], "input_ids" [B, T], "length" [B], "prefix_length", "trie"}`.

How: `PromptRows` fetches the rows of a batch in one Arrow read (`PromptArrays` from memory), and the collator scatters
their tokens into a padded tensor with one masked assignment; there is no Python loop over rows or tokens. Why right
padding and no attention mask for vectors: in a causal model no token sees what stands right of it, so padding cannot
change a vector, and without a mask the attention kernels take their fast causal path. Generation decodes at the end of
every row, so there the padding stands on the left, behind the shared prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from memvec.data.trie import TokenTrie, build_trie
from memvec.schema import INPUT_IDS

if TYPE_CHECKING:
    from datasets import Dataset

# Every vocabulary has it. A tokenizer's own padding token may lie beyond the model's embeddings: one that was added.
PADDING = 0


class Batch(TypedDict):
    """What `predict_step` receives.

    index: `[B]` int64, row numbers, which travel with the batch to the writer.
    input_ids: `[B, T]` int64, padded on the right, or on the left behind the shared prefix.
    length: `[B]` int64, tokens of each row.
    prefix_length: leading tokens that all rows of the batch share with every other such batch; 0 where they do not.
    trie: the same tokens without padding; None where nobody asked for it.
    """

    index: torch.Tensor
    input_ids: torch.Tensor
    length: torch.Tensor
    prefix_length: int
    trie: TokenTrie | None


@dataclass(frozen=True)
class TokenRows:
    """The rows of one batch, not padded yet.

    Args:
        index: `[B]`, their numbers.
        input_ids: Their tokens, one row after the other, int32.
        length: `[B]` int64, tokens of each row.
    """

    index: NDArray[np.int64]
    input_ids: NDArray[np.int32]
    length: NDArray[np.int64]


class TokenSource(Protocol):
    """Where tokenised prompts lie."""

    def __getitems__(self, indices: NDArray[np.int64]) -> TokenRows:
        """Returns rows by their numbers; the DataLoader calls this instead of one `__getitem__` a row."""


class PromptRows(torch.utils.data.Dataset[TokenRows]):
    """The tokenised dataset, memory-mapped, read a batch at a time.

    Args:
        dataset: With columns of `memvec.features.PROMPT_FEATURES`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset.select_columns([INPUT_IDS]).with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: NDArray[np.int64]) -> TokenRows:
        """Returns the rows of a batch in one Arrow read."""
        column = self.dataset[indices].column(INPUT_IDS).combine_chunks()
        offsets = column.offsets.to_numpy()
        flat = column.values.to_numpy()[offsets[0] : offsets[-1]]
        return TokenRows(np.asarray(indices), flat, np.diff(offsets).astype(np.int64))


class PromptArrays:
    """Tokenised prompts in memory.

    Args:
        input_ids: All tokens, one prompt after the other, int32.
        offsets: `[N + 1]`, where each begins and the last ends.
    """

    def __init__(self, input_ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self.input_ids = input_ids
        self.offsets = offsets

    def __getitems__(self, indices: NDArray[np.int64]) -> TokenRows:
        """Returns the rows of a batch."""
        starts, length = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        ends = length.cumsum()
        # Position i of the result is i tokens behind the first row's start, less what was gone through before its row.
        at = np.arange(ends[-1]) + np.repeat(starts - (ends - length), length)
        return TokenRows(np.asarray(indices), self.input_ids[at], length)


class PaddingCollator:
    """Pads the rows of a batch to the longest.

    Args:
        prefix_rows: `[N]` bool over the whole dataset, whether a row begins with the shared prefix.
        prefix_length: Tokens of that prefix.
        padding_side: Where the padding stands; on the left it stands behind the shared prefix.

    Attributes:
        builds_tries: Whether batches have their tokens without padding too.
    """

    def __init__(
        self,
        *,
        prefix_rows: NDArray[np.bool_] | None = None,
        prefix_length: int = 0,
        padding_side: Literal["right", "left"] = "right",
    ) -> None:
        self.padding_side = padding_side
        self.prefix_rows = prefix_rows
        self.prefix_length = prefix_length
        self.builds_tries = False

    def __call__(self, rows: TokenRows) -> Batch:
        """Returns the batch of `rows`."""
        length = rows.length  # [B]
        shares = self.prefix_rows is not None and bool(self.prefix_rows[rows.index].all())
        prefix_length = self.prefix_length if shares else 0
        input_ids = torch.full((len(length), int(length.max())), PADDING, device="cpu")
        side = prefix_length if self.padding_side == "left" else None
        mask = real_tokens(torch.from_numpy(length), width=input_ids.shape[1], left_behind=side)
        input_ids.masked_scatter_(mask, torch.from_numpy(rows.input_ids.astype(np.int64)))  # [sum of lengths] -> [B, T]
        return Batch(
            index=torch.from_numpy(rows.index.copy()),
            input_ids=input_ids,
            length=torch.from_numpy(length),
            prefix_length=prefix_length,
            trie=build_trie(rows.input_ids, length) if self.builds_tries else None,
        )


def real_tokens(length: torch.Tensor, *, width: int, left_behind: int | None = None) -> torch.Tensor:
    """Returns where a padded batch has tokens, `[B, T]` bool on the device of `length`.

    Args:
        length: `[B]`, tokens of each row.
        width: T.
        left_behind: None where the padding stands on the right; else it stands behind so many tokens.
    """
    columns = torch.arange(width, device=length.device)
    if left_behind is None:
        return columns < length[:, None]
    return (columns < left_behind) | (columns >= left_behind + width - length[:, None])
