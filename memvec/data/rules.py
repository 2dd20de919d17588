"""The rules by which rows become batches: how many share one, what they cost, where padding stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memvec.config.values import at_least, at_least_or_none
from memvec.data.cutting import SHORTEST_IN_BATCH
from memvec.errors import ConfigError


@dataclass(frozen=True)
class BatchRules:
    """How rows become batches.

    Args:
        batch_size: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; None takes the device's default, `auto` tries several.
        output_tokens: Tokens that each row grows by while it is computed. A row that grows holds its own copy of the
            shared prefix in the end, and is padded on the left, so that all rows grow at one place.

    Raises:
        ConfigError: An option does not make sense.
    """

    batch_size: int = 1024
    max_tokens: int | Literal["auto"] | None = None
    output_tokens: int = 0

    def __post_init__(self) -> None:
        at_least("data.batch_size", self.batch_size, 1)
        if isinstance(self.max_tokens, str):
            if self.max_tokens != "auto" or self.output_tokens:  # what an output costs is not known before
                allowed = ["auto", "null", "an integer of at least 1"][bool(self.output_tokens) :]
                raise ConfigError("data.max_tokens", self.max_tokens, allowed=allowed)
        else:
            at_least_or_none("data.max_tokens", self.max_tokens, 1)

    @property
    def padding_side(self) -> Literal["right", "left"]:
        """Where padding stands."""
        return "left" if self.output_tokens else "right"

    @property
    def shortest_in_batch(self) -> float:
        """What the shortest row of a batch costs at least, as a share of its longest.

        Rows that grow decode in as many steps as their batch's longest, whatever their prompts' lengths: 0.
        """
        return 0.0 if self.output_tokens else SHORTEST_IN_BATCH

    def row_tokens(self, lengths: NDArray[np.int32], prefix_length: int) -> NDArray[np.int32]:
        """Returns the tokens that rows count in a batch, `[N]`: what `max_tokens` limits and the progress bar counts.

        Args:
            lengths: Tokens of their prompts, `[N]`.
            prefix_length: Leading tokens that are computed once.
        """
        return lengths + self.output_tokens if self.output_tokens else lengths - prefix_length
