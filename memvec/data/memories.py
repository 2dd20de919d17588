"""Memory texts as the input of a run: which prompt they are put into, how they become batches.

In: rows, a prompt and a tokenizer. Out: what `memvec.data.datamodule` serves from: usable rows on disk, an encoder for
their prompts, and the rules of their batches.
"""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from memvec.config.values import at_least, one_text
from memvec.data.dataset import EntriesSummary
from memvec.data.rows import InputRows
from memvec.data.rules import BatchRules
from memvec.layout import RunLayout
from memvec.prompt.encoder import PromptEncoder, text_limit
from memvec.prompt.template import Prompt


class MemoryTexts:
    """Memory texts, one row an entry.

    Args:
        rows: Where they lie.
        prompt: The prompt each text is put into.
        tokenizer: The model's tokenizer.
        model_limit: Most tokens the model takes; None is no limit.
        vocabulary: How many tokens the model has embeddings for; None is not known.
        text_column: Name of the field with the text.
        batch_size: Most entries in a batch.
        max_tokens: Most tokens in a batch, padding included, shared prefix not; None chooses by the device, `auto`
            tries several on real rows.
        max_length: Most tokens in one prompt; None is the model's own limit.
        num_workers: Processes that build batches; 0 builds them in the predicting process, which rarely waits for them.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        rows: InputRows,
        *,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerFast,
        model_limit: int | None,
        vocabulary: int | None = None,
        text_column: str = "text",
        batch_size: int = 1024,
        max_tokens: int | Literal["auto"] | None = None,
        max_length: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.rows = rows
        self.text_column = one_text("data.text_column", text_column)
        self.rules = BatchRules(batch_size=batch_size, max_tokens=max_tokens)
        self.num_workers = at_least("data.num_workers", num_workers, 0)
        self.encoder = PromptEncoder(
            tokenizer, prompt, max_length=text_limit(max_length, model_limit), vocabulary=vocabulary
        )

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run: the rows and how they are tokenised."""
        rows = self.rows.fingerprint(self.rows.sources, text_column=self.text_column)
        return {**rows, **self.encoder.fingerprint()}

    def write_entries(self, folder: RunLayout) -> EntriesSummary:
        """Reads the input and writes the usable rows, and the rejected ones."""
        return self.rows.write_entries(
            folder, self.rows.sources, text_column=self.text_column, entries_path=folder.entries
        )
