"""Makes what a model has written a row of the journal, whoever ran the model.

In: an output of a window. Out: a row of `memvec.generation.completions.COMPLETION_SCHEMA`, in which stands whether the
output was understood, so that a run that resumes knows what to try again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from memvec.generation.completions import ATTEMPT, IS_CUT, OUTCOME
from memvec.generation.echoes import Instructions, PromptContent
from memvec.generation.parser import Outcome, parse
from memvec.schema import INDEX, NUM_TOKENS, REASON, SPEAKERS, TEXT


@dataclass(frozen=True)
class OutputRows:
    """Makes rows of one attempt.

    Args:
        windows: Of the run.
        instructions: The part of the prompt that is the same for all windows.
        attempt: From 0.
    """

    windows: Dataset
    instructions: Instructions
    attempt: int

    def of(self, row: int, text: str, *, num_tokens: int, is_cut: bool) -> dict[str, Any]:
        """Returns the row of an output.

        Args:
            row: Of the window.
            text: What the model wrote.
            num_tokens: Tokens it wrote, its end included.
            is_cut: Whether it was stopped before it came to its end.
        """
        prompt = prompt_content(self.windows[row], self.instructions)
        outcome = parse(text, is_cut=is_cut, prompt=prompt).outcome
        said = {INDEX: row, ATTEMPT: self.attempt, TEXT: text, NUM_TOKENS: num_tokens, IS_CUT: is_cut}
        return {**said, OUTCOME: outcome.value}

    def without_output(self, row: int, reason: str) -> dict[str, Any]:
        """Returns the row of a window that will have no output, and why."""
        said = {INDEX: row, ATTEMPT: self.attempt, NUM_TOKENS: 0, IS_CUT: False}
        return {**said, OUTCOME: Outcome.UNPARSEABLE.value, REASON: reason}


def prompt_content(window: dict[str, Any], instructions: Instructions) -> PromptContent:
    """Returns what the model was given to read about a window."""
    return PromptContent(instructions, window[TEXT], tuple(window[SPEAKERS]))
