"""Builds the prompt of a memory text and tokenises it.

In: texts and a template with one `{text}`. Out: for each text the `input_ids` of its prompt, exactly those of
`tokenizer(template.replace("{text}", text))`, with two exceptions that keep vectors right:

- a prompt longer than `max_length` loses the end of its *text*: the template's own end is what the vector is read from;
- a special token's spelling inside a text (`<|im_end|>`) is tokenised as plain characters: a memory text is data.

How: whole batches go through the Rust tokenizer at once; the few rows to which an exception applies are done again one
by one. Special tokens are found in the result, not looked for in the text: no rule about spelling has to be copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from memvec.data.digest import as_pairs, digest
from memvec.errors import ConfigError, ModelError

FIELD = "{text}"
# Few texts have tokens longer than this on average; where one has, the chunk is doubled until it fills the prompt.
CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch of B tokenised prompts in flat form.

    Args:
        input_ids: All tokens one after the other, int32.
        offsets: `[B + 1]` int64; row i is `input_ids[offsets[i]:offsets[i + 1]]`.
        shared: `[B]` int32, leading tokens in common with the template's own beginning, at most length - 1.
        truncated: `[B]` bool, whether the text lost its end.
        digests: `[B, 2]` uint64, equal for equal tokens.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    shared: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    digests: NDArray[np.uint64]


@dataclass(frozen=True)
class Prompt:
    """What a text is put into.

    Args:
        template: Text with `{text}` exactly once; other braces are plain characters.
        chat: Whether the filled template is the user's message in the tokenizer's own chat template, followed by the
            beginning of the assistant's answer; else it is the whole prompt.

    Raises:
        ConfigError: `{text}` is not there exactly once.
    """

    template: str
    chat: bool = False

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
        message = [{"role": "user", "content": self.template}]
        rendered = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        if rendered.count(FIELD) != 1:
            raise ModelError(f"{tokenizer.name_or_path}: its chat template does not keep a message as it is")
        return rendered


class PromptEncoder:
    """Tokenises texts within a template.

    Args:
        tokenizer: A fast tokenizer; this object switches its settings, so it should not be used elsewhere meanwhile.
        prompt: What the texts are put into.
        max_length: Most tokens in one prompt; None is no limit.

    Raises:
        ConfigError: The template alone does not fit into `max_length`.
        ModelError: The tokenizer is not a fast one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Prompt,
        *,
        max_length: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{tokenizer.name_or_path}: has no fast tokenizer (tokenizer.json), which memvec needs")
        self.head, self.tail = prompt.render(tokenizer).split(FIELD)
        self.add_special_tokens = not prompt.chat  # a chat template spells the tokenizer's own special tokens itself
        self.max_length = max_length
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._is_special = self._special_table()
        self._around = self._split_around_text()
        frame = self._encode_plain("")
        if max_length is not None and len(frame) >= max_length:
            raise ConfigError(
                f"data.max_length={max_length} leaves no room for a text: the prompt template alone takes {len(frame)} "
                f"tokens; allowed: {len(frame) + 1} or more"
            )
        self.head_ids = np.asarray(self._encode([self.head])[0], dtype=np.int32)  # [P]
        # What the template and the tokenizer put in; a prompt with more special tokens than this spells one in its text.
        self._special_count = int(self._is_special[np.asarray(self._encode([self.head + "a" + self.tail])[0])].sum())

    def encode(self, texts: Sequence[str]) -> EncodedPrompts:
        """Tokenises the prompts of `texts`."""
        limit = None if self.max_length is None else CHARACTERS_PER_TOKEN * self.max_length
        # A text of many megabytes would be tokenised whole only to be cut: it goes straight to `_fit`.
        fits = [limit is None or len(text) <= limit for text in texts]
        rows = self._encode(
            [self.head + (text if fit else "") + self.tail for text, fit in zip(texts, fits, strict=True)]
        )
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        again = self._spells_special(flat, lengths) | ~np.asarray(fits)
        if self.max_length is not None:
            again |= lengths > self.max_length
        truncated = np.zeros(len(rows), dtype=bool)
        if again.any():
            for row in np.flatnonzero(again).tolist():
                rows[row], truncated[row] = self._encode_one(texts[row])
            lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
            flat = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        digests = b"".join(digest(flat[a:b].tobytes()) for a, b in zip(offsets[:-1], offsets[1:], strict=True))
        return EncodedPrompts(flat, offsets, self._shared(flat, offsets), truncated, as_pairs(digests))

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the tokens of a prompt, for the run's fingerprint."""
        return {
            "template": self.head + FIELD + self.tail,
            "add_special_tokens": self.add_special_tokens,
            "tokenizer": hashlib.sha256(self._backend.to_str().encode()).hexdigest(),
            "max_length": self.max_length,
        }

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(prompts, add_special_tokens=self.add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def _special_table(self) -> NDArray[np.bool_]:
        table = np.zeros(max(self._backend.get_vocab(with_added_tokens=True).values()) + 1, dtype=bool)
        added = self._backend.get_added_tokens_decoder()
        table[[token_id for token_id, token in added.items() if token.special]] = True
        return table

    def _spells_special(self, flat: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a row holds more special tokens than the template and the tokenizer put in, `[B]` bool."""
        counts = np.concatenate([[0], np.cumsum(self._is_special[flat])])  # [sum of lengths + 1]
        ends = np.cumsum(lengths)
        found: NDArray[np.bool_] = counts[ends] - counts[ends - lengths] > self._special_count
        return found

    def _encode_one(self, text: str) -> tuple[list[int], bool]:
        """Tokenises one text as plain characters and within `max_length`; says whether it lost its end."""
        if self.max_length is None:
            return self._encode_plain(text), False
        chunk = CHARACTERS_PER_TOKEN * self.max_length  # a text of megabytes is not tokenised whole only to be cut
        while chunk < len(text) and len(self._encode_plain(text[:chunk])) <= self.max_length:
            chunk *= 2
        input_ids = self._encode_plain(text[:chunk])
        if len(input_ids) <= self.max_length:
            return input_ids, False
        return self._cut(text[:chunk], self.max_length), True

    def _cut(self, text: str, max_length: int) -> list[int]:
        """Tokenises the beginning of a text too long for `max_length` that fills the prompt to its last token.

        Tokens grow with characters but for a few at the cut, so bisection finds such a beginning; it starts where the
        tokens of the whole prompt say the cut must be, and is there after one or two tries.
        """
        low, high, middle = 0, len(text), self._character_at_cut(text, max_length)
        best = self._encode_plain("")
        while high - low > 1:
            candidate = self._encode_plain(text[:middle])
            if len(candidate) <= max_length:
                low, best = middle, candidate
            else:
                high = middle
            if len(best) == max_length:
                break
            middle = (low + high) // 2
        return best

    def _character_at_cut(self, text: str, max_length: int) -> int:
        left, right = self._around
        start = len(self.head) - len(left.text)
        tail = self.tail[: len(self.tail) - len(right.text)]
        offsets = self._backend.encode(self.head[len(left.text) :] + text + tail).offsets  # (start, end) characters
        tail_count = sum(begin >= start + len(text) for begin, _ in offsets[-len(tail) - 8 :])
        kept = max_length - len(left.input_ids) - len(right.input_ids) - tail_count
        return min(max(offsets[max(kept, 0)][0] - start, 1), len(text) - 1)

    def _encode_plain(self, text: str) -> list[int]:
        """Tokenises one prompt in which no character of the text makes a special token."""
        left, right = self._around
        self._backend.encode_special_tokens = True  # the library's name for "special tokens are spelled out"
        try:
            prompt = self.head[len(left.text) :] + text + self.tail[: len(self.tail) - len(right.text)]
            middle: list[int] = self._backend.encode(prompt, add_special_tokens=self.add_special_tokens).ids
        finally:
            self._backend.encode_special_tokens = False
        return [*left.input_ids, *middle, *right.input_ids]

    def _split_around_text(self) -> tuple[_Side, _Side]:
        """Splits off what a template with special tokens of its own (a chat template) holds outside the last of them
        before and the first of them after the text. Tokenizers cut at special tokens first, so the parts tokenise as
        the whole does; that is checked, not assumed.
        """
        specials = [token.content for token in self._backend.get_added_tokens_decoder().values() if token.special]
        left = max((self.head.rfind(token) + len(token) for token in specials if token in self.head), default=0)
        right = min((self.tail.find(token) for token in specials if token in self.tail), default=len(self.tail))
        sides = (self._side(self.head[:left]), self._side(self.tail[right:]))
        if left == 0 and right == len(self.tail):
            return sides
        self._around = sides
        for probe in ("a", "中文", " a. "):
            if self._encode_plain(probe) != self._encode([self.head + probe + self.tail])[0]:
                raise ModelError(
                    f"the template {self.head + FIELD + self.tail!r} cannot be split at its special tokens"
                )
        return sides

    def _side(self, text: str) -> _Side:
        return _Side(text, self._backend.encode(text, add_special_tokens=False).ids if text else [])

    def _shared(self, flat: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """Counts each row's leading tokens in common with the template's beginning, at most length - 1, `[B]`."""
        lengths = np.diff(offsets)
        width = len(self.head_ids)
        if width == 0:
            return np.zeros(len(lengths), dtype=np.int32)
        columns = np.arange(width)
        inside = columns < (lengths - 1)[:, None]  # [B, P]
        at = np.minimum(offsets[:-1, None] + columns, len(flat) - 1)  # [B, P]
        equal = (flat[at] == self.head_ids) & inside
        shared: NDArray[np.int32] = np.cumprod(equal, axis=1).sum(axis=1).astype(np.int32)
        return shared


@dataclass(frozen=True)
class _Side:
    """What stands on one side of the text, up to its special token: the characters and their tokens."""

    text: str
    input_ids: list[int]
