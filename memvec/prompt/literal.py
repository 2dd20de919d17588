"""A tokenizer that takes special tokens in a text for plain characters.

In: a tokenizer and a template. Out: a copy of the tokenizer in which `<|im_end|>` in a text is ten characters, while
the template's own special tokens are themselves.
"""

from __future__ import annotations

import json
import re
import secrets

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE


class LiteralTokenizer:
    """A copy of a tokenizer that takes a text's special tokens for plain characters, and the template's for themselves.

    The library can spell out all special tokens of a string (`encode_special_tokens`) but not those of one part, and
    the parts cannot be tokenised one by one, since a part may tokenise in another way where it stands first (Metaspace
    with `prepend_scheme="first"`, as in Llama 2 and Mistral). So the copy spells out all, and knows each special token
    of the template by a second name, which no text can hold since it is drawn at random.

    Args:
        backend: The tokenizer.
        template: The prompt without its text.
    """

    def __init__(self, backend: Tokenizer, template: str) -> None:
        secret = f"memvec{secrets.token_hex(8)}x"
        added = backend.get_added_tokens_decoder().items()
        special = {token.content: (token_id, token) for token_id, token in added if token.special}
        self.backend = Tokenizer.from_str(_hide_pieces(backend, set(special), secret))
        self.backend.encode_special_tokens = True
        self._names = {content: f"{secret}{at}x" for at, content in enumerate(special) if content in template}
        self.backend.add_tokens([_renamed(special[content][1], name) for content, name in self._names.items()])
        ids = self.backend.get_vocab(with_added_tokens=True)
        self.real_ids = np.arange(max(ids.values()) + 1, dtype=np.int32)  # [ids of the copy] -> ids of the tokenizer
        for content, name in self._names.items():
            self.real_ids[ids[name]] = special[content][0]

    def rename(self, part: str) -> str:
        """Returns a part of the template with the second names in place of its special tokens, longest first."""
        if not self._names:
            return part
        spellings = sorted(self._names, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, spellings)), lambda match: self._names[match.group()], part)


def _renamed(token: AddedToken, name: str) -> AddedToken:
    flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return AddedToken(name, special=False, normalized=False, **flags)


def _hide_pieces(backend: Tokenizer, special: set[str], secret: str) -> str:
    """Returns the tokenizer as JSON, with special tokens out of its model's reach.

    Models that look whole pieces up (Unigram, WordPiece, WordLevel) find `</s>` in their vocabulary though it is
    spelled out; BPE builds its tokens by merging and does not. The pieces are renamed, not removed: ids stay.
    """
    content = backend.to_str()
    if isinstance(backend.model, BPE):
        return content
    state = json.loads(content)
    model = state["model"]
    if isinstance(model["vocab"], list):  # Unigram: (piece, score) by id; the unknown piece goes by its id
        names = {piece: f"{secret}{at}" for at, (piece, _) in enumerate(model["vocab"]) if piece in special}
        model["vocab"] = [(names.get(piece, piece), score) for piece, score in model["vocab"]]
    else:  # the unknown piece goes by its name, and spelled out it is unknown: it stays
        hidden = special - {model.get("unk_token")}
        names = {piece: f"{secret}{at}" for piece, at in model["vocab"].items() if piece in hidden}
        model["vocab"] = {names.get(piece, piece): at for piece, at in model["vocab"].items()}
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return json.dumps(state)
