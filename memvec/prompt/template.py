"""The prompt template that a memory text is put into.

In: a template with one `{text}`, and for chat prompts a tokenizer's chat template. Out: the rendered template, again
with `{text}` exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from memvec.errors import ConfigError, ModelError

FIELD = "{text}"


@dataclass(frozen=True)
class Prompt:
    """What a text is put into.

    Args:
        template: Text with `{text}` exactly once; other braces are plain characters.
        chat: Whether the filled template is the user's message in the tokenizer's own chat template, followed by the
            beginning of the assistant's answer; else it is the whole prompt.
        turns: Messages of a chat that stand before it, such as worked examples.
        chat_template_kwargs: What the chat template is given besides, such as `enable_thinking`.

    Raises:
        ConfigError: `{text}` is not there exactly once.
    """

    template: str
    chat: bool = False
    turns: Sequence[Mapping[str, str]] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or self.template.count(FIELD) != 1:
            raise ConfigError(f"prompt.template={self.template!r}: allowed: a text with {FIELD} exactly once")

    def render(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """Returns the whole template, again with `{text}` exactly once.

        Raises:
            ModelError: `chat` is true and the tokenizer has no chat template, or one that changes the message.
        """
        if not self.chat:
            return self.template
        if not tokenizer.chat_template:
            raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; choose another prompt")
        messages = [*map(dict, self.turns), {"role": "user", "content": self.template}]
        try:
            rendered = str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
                )
            )
        except TemplateError as error:  # for one, a template that wants a system message first
            raise ModelError(f"{tokenizer.name_or_path}: its chat template cannot be filled: {error}") from error
        if rendered.count(FIELD) != 1:
            raise ModelError(f"{tokenizer.name_or_path}: its chat template does not keep a message as it is")
        return rendered
