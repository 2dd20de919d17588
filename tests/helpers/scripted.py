"""A tiny model that writes what a test wants written, and a few conversations for it.

How: one attention layer that looks at all tokens alike, a one-hot embedding, and a head that names for each token the
one that follows. A mark in the conversation (`NOTHING`, `FAILS`, `SILENT`, `UNDECIDED`) pushes the first token of the
answer to another. It is a Llama like any other, so everything around the model is what it is for a real one.

What it writes: of a conversation without marks `- She likes <word><digit><letter>.`, always the same greedily, and one
of two thousand where it is drawn.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.models import TOKENS, build_tokenizer

NOTHING = "?"  # the model answers that there is nothing to remember
FAILS = "!"  # it writes what cannot be understood
SILENT = "%"  # it ends its answer at once
UNDECIDED = "&"  # it writes that greedily; where it is drawn, a memory about as often

WORDS = [" tea", " cat", " hikes", " one", " mean", " mov", " wor", " Ber", " May", " bi", " all", " to"]
MEMORY = [["-"], [" Sh"], ["e"], [" l"], ["ikes"], WORDS, list("0123456789"), list("abcdfgjkmpqvwxyz"), ["."]]
NONE = [["n"], ["i"], ["l"]]
FAILURE = [["#"]]
COLOURS = 16  # dimensions in which the vectors of different texts differ; the head does not see them
ALWAYS, MARKED, NEARLY_MARKED, UNMARKED = 1e5, 1000.0, 997.0, 2.0


def save_scripted_model(folder: Path) -> Path:
    """Saves the model and its tokenizer as a model folder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokens = len(tokenizer)
    width = tokens + COLOURS
    size = {"hidden_size": width, "intermediate_size": 8, "head_dim": width, "max_position_embeddings": 8192}
    one = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokens, **size, **one, **TOKENS)).eval()

    def number(token: str) -> int:
        (found,) = tokenizer(token, add_special_tokens=False)["input_ids"]
        return int(found)

    marks = [number(mark) for mark in (NOTHING, FAILS, SILENT, UNDECIDED)]
    head = torch.zeros(tokens, width)
    start, end = number("\n"), tokenizer.convert_tokens_to_ids("<|im_end|>")
    written: list[int] = []
    for script in (MEMORY, NONE, FAILURE):
        slots = [[number(token) for token in slot] for slot in script]
        for slot, following in zip(slots, [*slots[1:], [end]], strict=True):
            for token in following:
                head[token, slot] = ALWAYS
            written += slot
    assert len(set(written)) == len(written), "a token can have one follower only"
    memory, none, failure = (number(script[0][0]) for script in (MEMORY, NONE, FAILURE))
    nothing, fails, silent, undecided = marks
    head[memory, start], head[memory, undecided] = UNMARKED, NEARLY_MARKED
    head[none, nothing] = head[failure, fails] = head[failure, undecided] = head[end, silent] = MARKED

    layer = model.model.layers[0]
    seen = torch.zeros(width)
    seen[[*marks, *range(tokens, width)]] = 1.0
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :tokens] = torch.eye(tokens)
        model.model.embed_tokens.weight[:, tokens:] = torch.randn(tokens, COLOURS) / 40
        model.lm_head.weight.copy_(head)
        for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.mlp.down_proj.weight):
            weight.zero_()
        layer.self_attn.v_proj.weight.copy_(torch.diag(seen))
        layer.self_attn.o_proj.weight.copy_(7 * torch.eye(width))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
