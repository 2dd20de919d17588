"""The prompt template that a memory text is put into.

In: a template with one `{text}`, and for chat prompts a tokenizer's chat template. Out: the rendered template, again
with `{text}` exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

from transformers import PreTrainedTokenizerFast

from memvec.errors import ConfigError, ModelError
from memvec.prompt.bounded import NotComputed, within_limits

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
            raise ConfigError("prompt.template", self.template, allowed=f"a text with {FIELD} exactly once")

    def render(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """Returns the whole template, again with `{text}` exactly once.

        Raises:
            ModelError: `chat` is true and the tokenizer has no chat template, or one that changes the message.
        """
        if not self.chat:
            return self.template
        if not tokenizer.chat_template:
            raise ModelError(tokenizer.name_or_path, found="has no chat template", advice="choose another prompt")
        messages = [*map(dict, self.turns), {"role": "user", "content": self.template}]
        return fill_chat_template(tokenizer, messages, keeps=FIELD, options=self.chat_template_kwargs)


def fill_chat_template(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, Any]],
    *,
    keeps: str,
    add_generation_prompt: bool = True,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Returns what a tokenizer's chat template makes of messages, within limits of time and memory.

    A template that does not take a message's content as a text (of a vision-language model) gets it as a list of parts.

    Args:
        tokenizer: It has a chat template.
        messages: The chat, each `content` a text.
        keeps: What stands in the messages once, and must stand in the result once.
        add_generation_prompt: Whether the beginning of the assistant's answer follows.
        options: What else the template is given.

    Raises:
        ModelError: The template raises, takes too long or too much, or changes the messages.
    """
    in_parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]

    def render(chat: Sequence[Mapping[str, Any]]) -> str:
        filled = tokenizer.apply_chat_template(
            cast(Any, chat), tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
        return str(filled)

    def compute() -> str:
        with suppress(Exception):
            if (filled := render(messages)).count(keeps) == 1:
                return filled
        with suppress(Exception):
            if (filled := render(in_parts)).count(keeps) == 1:
                return filled
        return render(messages)  # what it makes of texts, or raises, is what a reader of the error knows

    try:
        rendered = within_limits(compute)
    except NotComputed as error:  # for one, a template that wants a system message first
        raise ModelError(tokenizer.name_or_path, found=f"its chat template cannot be filled: {error}") from error
    if rendered.count(keeps) != 1:
        raise ModelError(tokenizer.name_or_path, found="its chat template does not keep a message as it is")
    return rendered
