"""The prompt that asks for memories, as conf/generation says it.

In: a template with one `{text}`, worked examples, options of the chat template. Out: a `Prompt` in which every example
is a turn of the chat before the real conversation, and the `Instructions` that echoes are told by.

Why examples as turns: the model sees what it itself is to answer, where an example within one long message is, to a
small model, only more conversation. All of it stands before the conversation, so it is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memvec.errors import ConfigError
from memvec.generation.echoes import Instructions
from memvec.prompt.template import FIELD, Prompt


@dataclass(frozen=True)
class MemoryPrompt:
    """What the model is asked.

    Args:
        template: The request, with `{text}` where the conversation stands.
        examples: Worked examples: a `conversation` as transcripts are rendered, and the `answer` to it.
        example_words: Words of the examples that are their own, names above all: an item with one of them is an echo of
            the example, unless its conversation has the word too.
        chat_template_kwargs: What the tokenizer's chat template is given besides, such as `enable_thinking: false`.

    Raises:
        ConfigError: An example is not an example, or holds `{text}`.
    """

    template: str
    examples: Sequence[Mapping[str, str]] = ()
    example_words: Sequence[str] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for example in self.examples:
            texts = list(example.values()) if isinstance(example, Mapping) else []
            if set(example) != {"conversation", "answer"} or any(FIELD in str(text) for text in texts):
                allowed = f"a conversation and an answer without {FIELD}"
                raise ConfigError("generation.prompt.examples", example, allowed=allowed)

    def to_prompt(self) -> Prompt:
        """Returns the prompt with the examples as turns of the chat."""
        turns = [
            {"role": role, "content": content}
            for example in self.examples
            for role, content in (
                ("user", self.template.replace(FIELD, example["conversation"])),
                ("assistant", example["answer"]),
            )
        ]
        return Prompt(self.template, chat=True, turns=turns, chat_template_kwargs=self.chat_template_kwargs)

    @property
    def instructions(self) -> Instructions:
        """The part of the prompt that is the same for all conversations."""
        examples = (part for example in self.examples for part in example.values())
        return Instructions("\n".join([self.template.replace(FIELD, ""), *examples]), tuple(self.example_words))

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the prompt besides its template, for the run's fingerprint."""
        return {
            "examples": [dict(example) for example in self.examples],
            "example_words": list(self.example_words),
            "chat_template_kwargs": dict(self.chat_template_kwargs),
        }
