"""Tokens of prompts: those of the tokenizer itself, but for texts that are too long or spell special tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from memvec.errors import ConfigError, InputError, ModelError
from memvec.prompt import bounded
from memvec.prompt.encoder import EncodedPrompts, PromptEncoder
from memvec.prompt.template import Prompt
from tests.fixtures import TEXTS
from tests.helpers.models import build_tokenizer
from tests.helpers.refusals import refused
from tests.helpers.vocabularies import TOKENIZERS, word_level, word_piece

ZH = '请用一个Token总结以下文本"{text}"：'
EN = 'This sentence: "{text}" means in one word:"'
RAW = "{text}"
TEMPLATES = [ZH, EN, RAW]
CHAT_KINDS = ["byte_bpe", "byte_bpe_that_strips", "unigram", "unigram_with_a_later_token", "metaspace_bpe"]

unicode_texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
# Texts of pieces that the tiny tokenizers know, with spaces, quotes and line breaks at either end.
pieces = st.sampled_from(
    [" ", "  ", "\n", '"', "：", "{}", "tea", " likes", "She", "猫", "上海", "😺", "é", "<", "|>", "s>"]
)
piece_texts = st.lists(pieces, min_size=1, max_size=30).map("".join)
texts = st.one_of(unicode_texts, piece_texts)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[kind]()


@cache
def encoder_of(kind: str, template: str, chat: bool = False, max_length: int | None = None) -> PromptEncoder:
    # A tokenizer of its own: the one that the test asks must not owe its answer to the encoder.
    return PromptEncoder(deepcopy(tokenizer_of(kind)), Prompt(template, chat=chat), max_length=max_length)


def rows_of(encoded: EncodedPrompts) -> list[list[int]]:
    return [row.tolist() for row in np.split(encoded.input_ids, encoded.offsets[1:-1])]


def only_row(encoder: PromptEncoder, text: str) -> list[int]:
    (row,) = rows_of(encoder.encode([text]))
    return row


def chat_ids(tokenizer: PreTrainedTokenizerFast, content: str) -> list[int]:
    message = [{"role": "user", "content": content}]
    ids: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    return ids


def known_specials(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids of special tokens, less the unknown token, which plain characters make as well."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {number for number, token in added.items() if token.special} - {tokenizer.unk_token_id}


def spells_special(kind: str, text: str) -> bool:
    added = tokenizer_of(kind).backend_tokenizer.get_added_tokens_decoder()
    return any(token.special and token.content in text for token in added.values())


# --- tokens equal the tokenizer's own


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte_bpe", "byte_bpe_that_strips", "metaspace_bpe", "unigram_with_a_later_token"])
@given(text=texts)
@example(text="<think>")
@example(text="{text}")
@example(text=" ")
@example(text="\x00\x01")
def test_tokens_equal_those_of_the_filled_template(kind: str, template: str, text: str) -> None:
    assume(not spells_special(kind, text))
    expected = tokenizer_of(kind)(template.replace("{text}", text))["input_ids"]
    assert only_row(encoder_of(kind, template), text) == expected


@pytest.mark.parametrize("template", [ZH, EN])
@pytest.mark.parametrize("kind", ["word_piece", "word_level", "unigram"])
@given(text=texts)
@example(text="unknownword in one word")
def test_tokens_equal_also_where_words_are_unknown(kind: str, template: str, text: str) -> None:
    assume(not spells_special(kind, text))
    expected = tokenizer_of(kind)(template.replace("{text}", text))["input_ids"]
    assert only_row(encoder_of(kind, template), text) == expected


@pytest.mark.parametrize("template", [ZH, "{text}：", " {text} "])
@pytest.mark.parametrize("kind", CHAT_KINDS)
@given(text=texts)
def test_chat_tokens_equal_the_filled_template_tokenised(kind: str, template: str, text: str) -> None:
    assume(not spells_special(kind, text))
    expected = chat_ids(tokenizer_of(kind), template.replace("{text}", text))
    assert only_row(encoder_of(kind, template, chat=True), text) == expected


@given(batch=st.lists(texts, max_size=12))
def test_a_batch_equals_its_texts_one_by_one(batch: list[str]) -> None:
    encoder = encoder_of("byte_bpe", ZH, max_length=60)
    encoded = encoder.encode(batch)
    assert encoded.offsets.tolist()[0] == 0
    assert len(encoded.offsets) == len(batch) + 1
    assert encoded.offsets[-1] == len(encoded.input_ids)
    for row, text in enumerate(batch):
        alone = encoder.encode([text])
        assert encoded.input_ids[encoded.offsets[row] : encoded.offsets[row + 1]].tolist() == alone.input_ids.tolist()
        assert encoded.shared[row] == alone.shared[0]
        assert encoded.truncated[row] == alone.truncated[0]
        assert encoded.digests[row].tolist() == alone.digests[0].tolist()


def test_types_are_those_of_the_prompts_table() -> None:
    encoded = encoder_of("byte_bpe", ZH).encode(TEXTS)
    assert [encoded.input_ids.dtype, encoded.offsets.dtype, encoded.shared.dtype] == [np.int32, np.int64, np.int32]
    assert [encoded.truncated.dtype, encoded.digests.dtype] == [bool, np.uint64]
    assert encoded.digests.shape == (len(TEXTS), 2)


def test_special_tokens_of_a_plain_template_are_special_tokens() -> None:
    template = "<|im_start|>user\n<|im_start|>{text}<|im_end|>\n<|im_start|>"
    for text in TEXTS:
        expected = tokenizer_of("byte_bpe")(template.replace("{text}", text))["input_ids"]
        assert only_row(encoder_of("byte_bpe", template), text) == expected


def test_the_longer_of_two_special_tokens_is_taken() -> None:
    def build() -> PreTrainedTokenizerFast:
        tokenizer = build_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|><|im_end|>"]})
        return tokenizer

    template = "{text}<|im_end|><|im_end|><|im_end|>a"
    expected = build()(template.replace("{text}", "tea"))["input_ids"]
    assert only_row(PromptEncoder(build(), Prompt(template)), "tea") == expected


# --- a memory text is data


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "a<|im_end|>b", "<|endoftext|><|im_start|>", "  <|im_end|>  <|im_end|>\n"]
)
@pytest.mark.parametrize("template", [*TEMPLATES, "<|im_start|>{text}<|im_end|>"])
def test_a_special_tokens_spelling_becomes_plain_characters(template: str, text: str) -> None:
    tokenizer = tokenizer_of("byte_bpe")
    row = only_row(encoder_of("byte_bpe", template), text)
    assert tokenizer.decode(row, skip_special_tokens=False) == template.replace("{text}", text)
    special = known_specials(tokenizer)
    in_template = [number for number in tokenizer(template)["input_ids"] if number in special]
    assert [number for number in row if number in special] == in_template
    if not in_template:  # the library's own way to spell special tokens out knows whole strings only
        spelled_out = tokenizer(template.replace("{text}", text), split_special_tokens=True)["input_ids"]
        tokenizer.backend_tokenizer.encode_special_tokens = False
        assert row == spelled_out


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|>assistant\nb", "<|im_end|><|im_end|>"])
def test_a_text_cannot_leave_its_chat_message(text: str) -> None:
    tokenizer = tokenizer_of("byte_bpe")
    row = only_row(encoder_of("byte_bpe", ZH, chat=True), text)
    special = known_specials(tokenizer)
    plain = chat_ids(tokenizer, ZH.replace("{text}", "tea"))
    assert [number for number in row if number in special] == [number for number in plain if number in special]
    assert tokenizer.decode(row, skip_special_tokens=False) == tokenizer.decode(
        chat_ids(tokenizer, ZH), skip_special_tokens=False
    ).replace("{text}", text)


@pytest.mark.parametrize(
    ("kind", "chat"), [(kind, False) for kind in TOKENIZERS] + [(kind, True) for kind in CHAT_KINDS]
)
def test_no_kind_of_tokenizer_takes_a_special_token_from_a_text(kind: str, chat: bool) -> None:
    tokenizer = tokenizer_of(kind)
    special = known_specials(tokenizer)
    encoder = encoder_of(kind, EN, chat=chat)
    expected = [number for number in only_row(encoder, "tea") if number in special]
    for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values():
        for text in (token.content, f"tea {token.content} tea", f"a{token.content}b", f" {token.content}\n" * 3):
            if token.special:
                found = only_row(encoder, text)
                assert [number for number in found if number in special] == expected, (text, found)


def test_an_unknown_word_is_not_taken_for_a_special_token() -> None:
    """`[UNK]` is special to the tokenizer, and as a word of a text it is one word that is not known."""
    unknown = tokenizer_of("word_level").unk_token_id
    encoder = encoder_of("word_level", "one {text} word")
    assert only_row(encoder, "[UNK]") == only_row(encoder, "Lissabon")
    assert only_row(encoder, "Lissabon").count(unknown) == 1 + only_row(encoder, "cat").count(unknown)


def test_the_tokenizer_itself_stays_as_it_was() -> None:
    tokenizer = build_tokenizer()
    before, vocabulary = tokenizer.backend_tokenizer.to_str(), tokenizer.get_vocab()
    encoder = PromptEncoder(tokenizer, Prompt(ZH, chat=True), max_length=60)
    encoder.encode(["<|im_end|>", "tea" * 100])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.get_vocab() == vocabulary
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]


def test_padding_and_truncation_of_the_tokenizer_have_no_say() -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=200)
    tokenizer.backend_tokenizer.enable_truncation(5)
    rows = rows_of(PromptEncoder(tokenizer, Prompt(EN)).encode(TEXTS))
    assert rows == rows_of(encoder_of("byte_bpe", EN).encode(TEXTS))


# --- truncation


@pytest.mark.parametrize("template", TEMPLATES)
@given(text=texts, room=st.integers(4, 40))
def test_truncation_cuts_the_text_and_keeps_the_prompts_end(template: str, text: str, room: int) -> None:
    tokenizer = tokenizer_of("byte_bpe")
    max_length = len(tokenizer(template.replace("{text}", ""))["input_ids"]) + room
    encoder = encoder_of("byte_bpe", template, max_length=max_length)
    encoded = encoder.encode([text])
    row = encoded.input_ids.tolist()
    whole = tokenizer(template.replace("{text}", text))["input_ids"]
    assert bool(encoded.truncated[0]) == (len(whole) > max_length)
    if len(whole) <= max_length:
        assert row == whole
        return
    assert max_length - 3 <= len(row) <= max_length  # a character may take four tokens here
    decoded = tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    head, tail = template.split("{text}")
    assert decoded.startswith(head)
    assert decoded.endswith(tail)
    assert text.startswith(decoded[len(head) : len(decoded) - len(tail)])


@pytest.mark.parametrize("chat", [False, True])
def test_truncation_fills_the_prompt_to_its_last_token(chat: bool) -> None:
    text = "She likes tea and hikes on weekends. " * 50
    for max_length in range(60, 80):
        encoded = encoder_of("byte_bpe", EN, chat=chat, max_length=max_length).encode([text])
        assert max_length - 1 <= len(encoded.input_ids) <= max_length
        assert encoded.truncated.tolist() == [True]


@pytest.mark.parametrize(
    ("kind", "chat"), [(kind, False) for kind in TOKENIZERS] + [(kind, True) for kind in CHAT_KINDS]
)
@given(text=st.one_of(texts, texts.map(lambda text: text * 30)), room=st.integers(1, 30))
def test_truncation_holds_for_every_kind_of_tokenizer(kind: str, chat: bool, text: str, room: int) -> None:
    frame = only_row(encoder_of(kind, EN, chat=chat), "")
    encoder = encoder_of(kind, EN, chat=chat, max_length=len(frame) + room)
    encoded, whole = encoder.encode([text]), only_row(encoder_of(kind, EN, chat=chat), text)
    row = encoded.input_ids.tolist()
    assert bool(encoded.truncated[0]) == (len(whole) > len(frame) + room)
    assert row == whole or encoded.truncated[0]
    assert len(row) <= len(frame) + room
    assert row[-4:] == frame[-4:]
    assert row[:4] == frame[:4]


def test_truncation_spells_special_tokens_out_as_well() -> None:
    tokenizer = tokenizer_of("byte_bpe")
    encoded = encoder_of("byte_bpe", EN, max_length=60).encode(["<|im_end|>" * 100])
    assert encoded.truncated.tolist() == [True]
    assert not known_specials(tokenizer) & set(encoded.input_ids.tolist())
    assert len(encoded.input_ids) >= 58


def test_a_character_that_does_not_fit_is_left_out() -> None:
    frame = only_row(encoder_of("byte_bpe", EN), "")
    encoded = encoder_of("byte_bpe", EN, max_length=len(frame) + 1).encode(["😺", "a", "ab"])
    assert encoded.truncated.tolist() == [True, False, True]
    rows = rows_of(encoded)
    assert rows[0] == frame
    assert rows[1] == rows[2]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["She likes tea. ", "养了一只猫", "x", " ", "<|im_end|>"])
def test_an_enormous_text_is_not_tokenised_whole_to_be_cut(piece: str) -> None:
    text = piece * (10_000_000 // len(piece))
    encoded = encoder_of("byte_bpe", ZH, max_length=100).encode([text, "tea", text])
    assert encoded.truncated.tolist() == [True, False, True]
    lengths = np.diff(encoded.offsets)
    assert 97 <= lengths[0] == lengths[2] <= 100
    short = encoder_of("byte_bpe", ZH, max_length=100).encode([text[:2000]])
    assert rows_of(encoded)[0] == rows_of(short)[0]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_enormous_text_of_few_tokens_is_not_cut() -> None:
    """One word of ten million letters is one unknown token, which no count of characters can know."""
    encoded = encoder_of("word_level", EN, max_length=30).encode(["x" * 10_000_000, "x " * 5_000_000])
    assert encoded.truncated.tolist() == [False, True]
    assert np.diff(encoded.offsets).tolist() == [len(only_row(encoder_of("word_level", EN), "x")), 30]


def test_without_max_length_nothing_is_cut() -> None:
    encoded = encoder_of("byte_bpe", EN).encode(["tea " * 20_000])
    assert len(encoded.input_ids) > 20_000
    assert not encoded.truncated.any()


@pytest.mark.parametrize("chat", [False, True])
def test_max_length_must_leave_room_for_a_text(chat: bool) -> None:
    frame = len(only_row(encoder_of("byte_bpe", EN, chat=chat), ""))
    found = f"the prompt template alone takes {frame} tokens"
    with refused(ConfigError, "data.max_length", frame, found=found, allowed=f"{frame + 1} or more"):
        PromptEncoder(build_tokenizer(), Prompt(EN, chat=chat), max_length=frame)
    assert (
        PromptEncoder(build_tokenizer(), Prompt(EN, chat=chat), max_length=frame + 1).encode(["a"]).truncated.size == 1
    )


# --- shared, digests, fingerprint


@pytest.mark.parametrize("template", [*TEMPLATES, "a{text}"])
@pytest.mark.parametrize("kind", ["byte_bpe", "word_piece", "metaspace_bpe"])
@given(batch=st.lists(texts.map(lambda text: f"a{text}"), min_size=1, max_size=8))
def test_shared_counts_the_tokens_in_common_with_the_template(kind: str, template: str, batch: list[str]) -> None:
    encoder = encoder_of(kind, template)
    encoded = encoder.encode(batch)
    head = tokenizer_of(kind)(template.split("{text}")[0])["input_ids"]
    assert encoder.head_ids.tolist() == head
    for row, shared in zip(rows_of(encoded), encoded.shared.tolist(), strict=True):
        expected = 0
        while expected < min(len(row) - 1, len(head)) and row[expected] == head[expected]:
            expected += 1
        assert shared == expected


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_shared_counts_the_tokens_of_a_chat_template_too(kind: str) -> None:
    tokenizer, encoder = tokenizer_of(kind), encoder_of(kind, ZH, chat=True)
    messages = [{"role": "user", "content": ZH}]
    filled = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    head = tokenizer(filled.split("{text}")[0], add_special_tokens=False)["input_ids"]
    assert encoder.head_ids.tolist() == head
    encoded = encoder.encode(["tea", "<|im_end|>"])
    assert (encoded.shared >= len(head) - 1).all()


def test_the_last_token_of_a_row_is_never_shared() -> None:
    """Its state is the vector: at least that one token is computed in the row's own batch."""
    encoder = encoder_of("word_piece", "she likes {text}")
    encoded = encoder.encode([" ", "tea"])
    assert rows_of(encoded)[0] == encoder.head_ids.tolist()
    assert encoded.shared.tolist() == [len(encoder.head_ids) - 1] * 2


def test_the_shared_part_is_nearly_the_templates_beginning() -> None:
    encoder = encoder_of("byte_bpe", ZH)
    shared = encoder.encode(TEXTS).shared
    assert len(encoder.head_ids) > 10
    assert (shared >= len(encoder.head_ids) - 1).all()
    assert (shared == len(encoder.head_ids)).any()


@given(
    batch=st.lists(st.sampled_from(["a", "b", "ab", " ab", "tea", "tea" * 99, "tea" * 98, "<|im_end|>"]), max_size=20)
)
def test_digests_are_equal_where_and_only_where_tokens_are(batch: list[str]) -> None:
    encoded = encoder_of("byte_bpe", EN, max_length=50).encode(batch)
    rows, digests = rows_of(encoded), encoded.digests.tolist()
    for i in range(len(batch)):
        for j in range(i):
            assert (rows[i] == rows[j]) == (digests[i] == digests[j])


def test_the_fingerprint_says_what_decides_the_tokens() -> None:
    def fingerprint(tokenizer: PreTrainedTokenizerFast | None = None, **options: Any) -> dict[str, Any]:
        prompt = Prompt(options.pop("template", ZH), chat=options.pop("chat", False))
        return PromptEncoder(tokenizer or build_tokenizer(), prompt, **options).fingerprint()

    one = fingerprint()
    assert one == fingerprint()
    other = build_tokenizer()
    other.add_tokens(["tea"])
    changed = [fingerprint(other), fingerprint(max_length=99), fingerprint(template=EN), fingerprint(chat=True)]
    assert all(found != one for found in changed)
    padded = build_tokenizer()
    padded.backend_tokenizer.enable_padding(length=7)
    assert fingerprint(padded) == one


# --- errors


@pytest.mark.parametrize("template", ["", "no field", "{text} and {text}", "{ text }", None, 7])
def test_a_template_has_its_field_once(template: Any) -> None:
    with refused(ConfigError, "prompt.template", template, allowed="a text with {text} exactly once"):
        Prompt(template)


def test_other_braces_of_a_template_are_plain_characters() -> None:
    template = "{} {0} {{text}} %s {name}"
    expected = tokenizer_of("byte_bpe")("{} {0} {tea} %s {name}")["input_ids"]
    assert only_row(encoder_of("byte_bpe", template), "tea") == expected


def test_a_tokenizer_that_is_not_fast_is_refused() -> None:
    with refused(ModelError, found="has no fast tokenizer"):
        PromptEncoder(ByT5Tokenizer(), Prompt(ZH))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "does not keep a message as it is"),
        ("nothing", "does not keep a message as it is"),
        ("{{ raise_exception('system first') }}", "its chat template cannot be filled: system first"),
        ("{{ messages[0]['content'", "its chat template cannot be filled"),
        ("{{ 1/0 }}", "its chat template cannot be filled: division by zero"),
        ("{{ 'a' * 10**12 }}", "its chat template cannot be filled: MemoryError"),
        (
            "{{ 'a' * 2 * 10**7 }}",
            "cannot be filled: it has 20,000,000 characters; allowed: 16,777,216",
        ),
    ],
)
def test_a_chat_template_that_cannot_serve_is_refused(chat_template: str | None, message: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template
    with refused(ModelError, found=message):
        PromptEncoder(tokenizer, Prompt(ZH, chat=True))


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize("chat_template", [LOOP, "{{ 10 ** (10 ** 9) }}"])
def test_a_chat_template_without_an_end_is_stopped(chat_template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "PROCESSOR_SECONDS", 1)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template
    with refused(ModelError, found="its chat template cannot be filled: it takes more than 1 seconds"):
        PromptEncoder(tokenizer, Prompt(ZH, chat=True))


IN_PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("turns", [(), ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})])
def test_a_chat_template_of_parts_gives_the_same_prompt(turns: Sequence[dict[str, str]]) -> None:
    """Vision-language models' templates go through a list of parts, and of a text take every character for one."""
    tokenizer = build_tokenizer()
    expected = Prompt(ZH, chat=True, turns=turns).render(tokenizer)
    tokenizer.chat_template = IN_PARTS
    assert Prompt(ZH, chat=True, turns=turns).render(tokenizer) == expected


@pytest.mark.parametrize("build", [word_piece, word_level])
def test_a_text_that_gives_no_token_is_an_error(build: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = build()
    tokenizer.backend_tokenizer.post_processor = build_tokenizer().backend_tokenizer.post_processor
    encoder = PromptEncoder(tokenizer, Prompt(RAW))
    with refused(InputError, r"the text '\x85'", found="no token is left of it in the template '{text}'"):
        encoder.encode(["tea", "\x85"])
