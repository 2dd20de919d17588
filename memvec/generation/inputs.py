"""Windows of conversations as the rows of a run: prompts for a model here, or texts that a server is asked about.

In: conversations, and who writes about them. Out: what `memvec.data.datamodule` serves from, or for a server the rows
that are left.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from memvec.config.values import at_least
from memvec.data.dataset import EntriesSummary
from memvec.data.prepared import PreparedRows
from memvec.data.rules import BatchRules
from memvec.errors import ConfigError
from memvec.generation.completions import has_completions
from memvec.generation.conversations import Conversations, Spans
from memvec.generation.prompt import MemoryPrompt
from memvec.layout import RunLayout
from memvec.prompt.encoder import MAX_LENGTH, PromptEncoder


class PromptWindows:
    """Windows that become prompts, each of which grows by what may be written to it.

    Args:
        conversations: Where they come from.
        prompt: What the model is asked about each window.
        tokenizer: The model's tokenizer.
        model_limit: Most tokens the model takes, those it writes counted; None is no limit.
        vocabulary: How many tokens the model has embeddings for; None is not known.
        output_tokens: Most tokens the model writes about a window.
        batch_size: Most windows in a batch.
        max_tokens: Most tokens in a batch, padding, output and shared prefix included; None is as many as have room for
            their keys and values in 2 GiB, or in two fifths of what is free on an accelerator.
        num_workers: Processes that build batches; 0 builds them in the predicting process, which rarely waits for them.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        conversations: Conversations,
        *,
        prompt: MemoryPrompt,
        tokenizer: PreTrainedTokenizerFast,
        model_limit: int | None,
        vocabulary: int | None = None,
        output_tokens: int,
        batch_size: int = 256,
        max_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if model_limit is not None and output_tokens >= model_limit:
            found = f"the model takes {model_limit} tokens, the prompt included"
            raise ConfigError("generation.max_new_tokens", output_tokens, found=found)
        self.conversations = conversations
        self.prompt = prompt
        self.rules = BatchRules(batch_size=batch_size, max_tokens=max_tokens, output_tokens=output_tokens)
        self.num_workers = at_least("data.num_workers", num_workers, 0)
        max_length = None if model_limit is None else model_limit - output_tokens
        try:
            self.encoder = PromptEncoder(tokenizer, prompt.to_prompt(), max_length=max_length, vocabulary=vocabulary)
        except ConfigError as error:
            if error.subject != MAX_LENGTH:
                raise
            found = f"with the {model_limit} tokens that the model takes, the prompt included, it {error.found}"
            advice = "take a model with a longer context, or a shorter generation.prompt"
            raise ConfigError("generation.max_new_tokens", output_tokens, found=found, advice=advice) from error

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompts of a run."""
        return {**self.conversations.fingerprint(), **self.encoder.fingerprint(), **self.prompt.fingerprint()}

    def write_entries(self, folder: RunLayout) -> EntriesSummary:
        """Reads the input, and writes the usable conversations, their windows and the rejected rows."""
        return self.conversations.write_entries(folder, spans=self.encoder.spans, room=self.encoder.room)


class AskedWindows:
    """Windows that a server is asked about, as their texts.

    Args:
        conversations: Where they come from.
        folder: The run's folder.
        spans: Returns where the tokens of each text stand, in characters.
    """

    def __init__(self, conversations: Conversations, *, folder: RunLayout, spans: Spans) -> None:
        self.conversations = conversations
        self.folder = folder
        self.attempt = 0  # where windows that failed are tried again, which time it is
        write_entries = partial(conversations.write_entries, folder, spans=spans)
        self.prepared = PreparedRows(folder, encoder=None, write_entries=write_entries)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the windows."""
        return self.conversations.fingerprint()

    def prepare_data(self) -> None:
        """Reads and cuts the input, as far as an earlier attempt has not; finds what is left to do."""
        self.prepared.prepare()
        self.find_remaining()

    def find_remaining(self) -> None:
        """Finds the windows that are left to ask about."""
        self.prepared.find_remaining(lambda rows: has_completions(self.folder, rows, self.attempt))

    def count_remaining(self) -> int:
        """Returns how many these are."""
        return self.prepared.count_remaining()
