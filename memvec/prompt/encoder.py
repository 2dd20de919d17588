"""Builds the prompt of a memory text and tokenises it.

In: texts and a template with one `{text}`. Out: for each text the `input_ids` of its prompt, exactly those of
`tokenizer(template.replace("{text}", text))`, with two exceptions that keep vectors right:

- a prompt longer than `max_length` loses the end of its *text*: the template's own end is what the vector is read from;
- a special token's spelling inside a text (`<|im_end|>`) is tokenised as plain characters: a memory text is data.

How: whole batches go through the Rust tokenizer at once, the few rows that are too long again one by one. The tokenizer
is a copy that takes no special token out of a text (`memvec.prompt.literal`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from memvec.config.values import at_least_or_none
from memvec.digest import as_pairs, digest
from memvec.errors import ConfigError, InputError, ModelError
from memvec.prompt.literal import LiteralTokenizer
from memvec.prompt.template import FIELD, Prompt

# Few texts have tokens longer than this on average; where one has, the chunk is doubled until it fills the prompt.
CHARACTERS_PER_TOKEN = 8
MAX_LENGTH = "data.max_length"  # the option, in errors


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


class PromptEncoder:
    """Tokenises texts within a template.

    Args:
        tokenizer: A fast tokenizer. It is copied; only its truncation and padding are switched off.
        prompt: What the texts are put into.
        max_length: Most tokens in one prompt; None is no limit.
        vocabulary: How many tokens the model has embeddings for; None is not known.

    Raises:
        ConfigError: The template alone does not fit into `max_length`.
        ModelError: The tokenizer is not a fast one, cannot leave special tokens spelled out, or makes tokens of the
            template that the model lacks.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Prompt,
        *,
        max_length: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
            raise ModelError(name, found="has no fast tokenizer (tokenizer.json), which memvec needs")
        self.head, self.tail = prompt.render(tokenizer).split(FIELD)
        self.add_special_tokens = not prompt.chat  # a chat template spells the tokenizer's own special tokens itself
        self.prompt = prompt
        self.max_length = max_length
        self.vocabulary = vocabulary
        backend: Tokenizer = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        state = f"{backend.to_str()}{tokenizer.chat_template if prompt.chat else ''}"
        self._tokenizer_digest = hashlib.sha256(state.encode()).hexdigest()
        self._literal = LiteralTokenizer(backend, self.head + self.tail)
        self._head, self._tail = self._literal.rename(self.head), self._literal.rename(self.tail)
        self._check(backend)
        self._frame = self._encode([""])[0].ids
        if max_length is not None and len(self._frame) >= max_length:
            found = f"leaves no room for a text: the prompt template alone takes {len(self._frame)} tokens"
            raise ConfigError(MAX_LENGTH, max_length, found=found, allowed=f"{len(self._frame) + 1} or more")
        self._check_vocabulary(self._literal.real_ids[self._frame])
        self.head_ids = self._literal.real_ids[self._ids(self._head)]  # [P]

    def encode(self, texts: Sequence[str]) -> EncodedPrompts:
        """Tokenises the prompts of `texts`.

        Raises:
            InputError: Not one token is left of a prompt.
            ModelError: A prompt has a token that the model lacks.
        """
        limit = None if self.max_length is None else CHARACTERS_PER_TOKEN * self.max_length
        # A text of many megabytes would be tokenised whole only to be cut: it goes straight to `_encode_one`.
        fits = [limit is None or len(text) <= limit for text in texts]
        encodings = self._encode([text if fit else "" for text, fit in zip(texts, fits, strict=True)])
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        truncated = np.zeros(len(encodings), dtype=bool)
        alone: dict[int, list[int]] = {}
        if self.max_length is not None:
            for row in np.flatnonzero(~np.asarray(fits, dtype=bool) | (lengths > self.max_length)).tolist():
                alone[row], truncated[row] = self._encode_one(texts[row], self.max_length)
                lengths[row] = len(alone[row])
        if not lengths.all():
            text, template = texts[int(np.argmin(lengths))][:40], self.head + FIELD + self.tail
            found = f"no token is left of it in the template {template!r} with max_length={self.max_length}"
            raise InputError(f"the text {text!r}", found=found, allowed="a text or a template that gives at least one")
        # One list at a time: as many lists as rows have the garbage collector look through them again and again.
        rows = (alone.get(row) or encoding.ids for row, encoding in enumerate(encodings))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        flat = self._literal.real_ids[ids]
        self._check_vocabulary(flat)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        digests = b"".join(digest(flat[a:b].tobytes()) for a, b in pairwise(offsets.tolist()))
        return EncodedPrompts(flat, offsets, self._shared(flat, offsets), truncated, as_pairs(digests))

    @property
    def room(self) -> int | None:
        """Most tokens that a text may have beside the template; None is no limit."""
        return None if self.max_length is None else self.max_length - len(self._frame)

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Returns for each text where its tokens stand, in characters, when it is tokenised alone."""
        encodings = self._literal.backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.offsets for encoding in encodings]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the tokens of a prompt, for the run's fingerprint."""
        return {
            "template": self.prompt.template,  # not as rendered: a chat template may print today's date
            "chat": self.prompt.chat,
            "tokenizer": self._tokenizer_digest,
            "max_length": self.max_length,
        }

    def _encode(self, texts: list[str]) -> list[Encoding]:
        """Tokenises the prompts of `texts`, whatever their length, into ids of the copy."""
        prompts = [self._head + text + self._tail for text in texts]
        return self._literal.backend.encode_batch_fast(prompts, add_special_tokens=self.add_special_tokens)

    def _ids(self, content: str) -> list[int]:
        ids: list[int] = self._literal.backend.encode(content, add_special_tokens=self.add_special_tokens).ids
        return ids

    def _check(self, backend: Tokenizer) -> None:
        """Compares the copy with the tokenizer itself: tokenizers are too many to know that it works for each."""
        for text in ("a", "中文", " a. "):
            expected = backend.encode(self.head + text + self.tail, add_special_tokens=self.add_special_tokens).ids
            if self._literal.real_ids[self._encode([text])[0].ids].tolist() != expected:
                found = "gives other tokens with this tokenizer where a text's special tokens are left spelled out"
                advice = "use a template without special tokens"
                raise ModelError("prompt.template", self.head + FIELD + self.tail, found=found, advice=advice)

    def _check_vocabulary(self, input_ids: NDArray[np.int32]) -> None:
        """Refuses tokens without an embedding: a tokenizer may be that of another model, or have tokens added to it."""
        largest = int(input_ids.max(initial=0))
        if self.vocabulary is not None and largest >= self.vocabulary:
            token = self._literal.backend.id_to_token(largest)
            number = f"{token!r} is number {largest:,}, the model has {self.vocabulary:,}"
            advice = "use the tokenizer that the model was trained with, or another prompt"
            raise ModelError("the tokenizer", found=f"has a token that the model lacks: {number}", advice=advice)

    def _encode_one(self, text: str, max_length: int) -> tuple[list[int], bool]:
        """Tokenises one text within `max_length`; says whether it lost its end."""
        chunk = CHARACTERS_PER_TOKEN * max_length  # a text of megabytes is not tokenised whole only to be cut
        input_ids = self._encode([text[:chunk]])[0].ids
        while chunk < len(text) and len(input_ids) <= max_length:
            chunk *= 2
            input_ids = self._encode([text[:chunk]])[0].ids
        if len(input_ids) <= max_length:
            return input_ids, False
        return self._cut(text[:chunk], max_length), True

    def _cut(self, text: str, max_length: int) -> list[int]:
        """Tokenises the beginning of a text too long for `max_length` that fills the prompt to its last token.

        Tokens grow with characters but for a few at the cut, so bisection finds such a beginning; it starts where the
        tokens of the whole prompt say the cut must be, and is there after one or two tries. Of a text whose first
        character does not fit, the prompt holds nothing.
        """
        low, high, middle = 0, len(text), self._character_at_cut(text, max_length)
        best = self._frame
        while high - low > 1:
            candidate = self._encode([text[:middle]])[0].ids
            if len(candidate) <= max_length:
                low, best = middle, candidate
            else:
                high = middle
            if len(best) == max_length:
                break
            middle = (low + high) // 2
        return best

    def _character_at_cut(self, text: str, max_length: int) -> int:
        """Guesses how many characters fit, between 1 and all but one."""
        start, end = len(self._head), len(self._head) + len(text)
        prompt = self._head + text + self._tail
        offsets = self._literal.backend.encode(prompt, add_special_tokens=self.add_special_tokens).offsets
        # The template's end, and what the tokenizer itself appends, which stands at (0, 0).
        behind = sum(1 for _ in takewhile(lambda span: span[0] >= end or span[1] == 0, reversed(offsets)))
        return min(max(offsets[max(max_length - behind, 0)][0] - start, 1), len(text) - 1)

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


def text_limit(max_length: int | None, model_limit: int | None) -> int | None:
    """Returns the most tokens of a prompt: what was asked for, or else the model's own limit.

    Raises:
        ConfigError: What was asked for is no length, or longer than the model takes.
    """
    at_least_or_none(MAX_LENGTH, max_length, 1)
    if max_length is not None and model_limit is not None and max_length > model_limit:
        raise ConfigError(MAX_LENGTH, max_length, found=f"the model takes at most {model_limit} tokens")
    return max_length or model_limit
