"""What the model is asked: worked examples as turns of the chat, and the conversation last."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from memvec.errors import ConfigError
from memvec.generation.prompt import MemoryPrompt
from memvec.prompt.encoder import PromptEncoder
from tests.helpers.refusals import refused

EXAMPLE = {"conversation": "Mia: Hi.", "answer": "NONE"}
PROMPT = MemoryPrompt("Facts of {text}:", [EXAMPLE], ["Mia"], {"enable_thinking": False})


def test_examples_are_turns_before_the_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    assert PROMPT.to_prompt().render(tokenizer) == (
        "<|im_start|>user\nFacts of Mia: Hi.:<|im_end|>\n<|im_start|>assistant\nNONE<|im_end|>\n"
        "<|im_start|>user\nFacts of {text}:<|im_end|>\n<|im_start|>assistant\n"
    )


def test_everything_before_the_conversation_is_shared(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, PROMPT.to_prompt())
    encoded = encoder.encode(["Ann: likes tea", "Bob: moved"])
    assert encoded.shared.min() >= len(encoder.head_ids) - 1  # the last token may melt into the conversation
    assert encoder.room is None
    assert PromptEncoder(tokenizer, PROMPT.to_prompt(), max_length=200).room == 200 - len(
        encoder.encode([""]).input_ids
    )


def test_options_reach_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    thinking = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template + "{% if enable_thinking is false %}<think></think>{% endif %}",
    )
    assert PROMPT.to_prompt().render(thinking).endswith("<|im_start|>assistant\n<think></think>")
    assert "<think>" not in MemoryPrompt("{text}").to_prompt().render(thinking)


def test_instructions_hold_what_tells_echoes() -> None:
    assert PROMPT.instructions.text.splitlines() == ["Facts of :", "Mia: Hi.", "NONE"]
    assert PROMPT.instructions.example_words == ("Mia",)


@pytest.mark.parametrize(
    "example", [{"conversation": "a"}, {"conversation": "{text}", "answer": "b"}, {"question": "a", "answer": "b"}]
)
def test_what_is_no_example_is_refused(example: dict[str, str]) -> None:
    allowed = "a conversation and an answer without {text}"
    with refused(ConfigError, "generation.prompt.examples", example, allowed=allowed):
        MemoryPrompt("{text}", [example])
