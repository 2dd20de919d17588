"""Small tokenizers of the kinds there are beside byte-level BPE, trained on the spot.

They differ in what a memory text can do to them: WordLevel and WordPiece know an unknown token and append tokens of
their own, Unigram and WordLevel look special tokens up like any other piece, and Metaspace treats the first piece of a
string in its own way.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.models import CORPUS, build_tokenizer

CHAT_TEMPLATE = "{{ '<s>' }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}


# Written down and not trained: two trainings of these kinds give two vocabularies.
WORDS = sorted({word.strip('.,;"：。，') for text in CORPUS for word in text.split()} - {""})
CHARACTERS = sorted(set("".join(WORDS)))


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT has it: lower case, an unknown token, [CLS] before and [SEP] behind."""
    pieces = [*BERT.values(), *CHARACTERS, *(f"##{character}" for character in CHARACTERS), *map(str.lower, WORDS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _bert(backend)


def word_level() -> PreTrainedTokenizerFast:
    """Whole words between spaces: `[SEP]` between two spaces is a word as well."""
    vocabulary = {word: number for number, word in enumerate([*BERT.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _bert(backend)


def unigram() -> PreTrainedTokenizerFast:
    """As XGLM has it; `<s>` and `</s>` are pieces of the model too."""
    specials = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    words = [(f"▁{word}", -float(len(word))) for word in WORDS]
    characters = [(character, -4.0) for character in ["▁", *CHARACTERS]]
    return _llama(Tokenizer(models.Unigram([*specials, *words, *characters], unk_id=0)))


def unigram_with_a_later_token() -> PreTrainedTokenizerFast:
    """The token it begins with was added after training, so that its id is none of the model's; one is not special."""
    tokenizer = unigram()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.add_special_tokens({"bos_token": "<later>"})
    begin = ("<later>", tokenizer.convert_tokens_to_ids("<later>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<later> $A", special_tokens=[begin]
    )
    return tokenizer


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral have it: BPE with a byte fallback, a space before the first piece alone."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=340, special_tokens=first))
    return _llama(Tokenizer(backend.model))  # without the trainer's added tokens: bytes are pieces of the model only


def byte_bpe_that_strips() -> PreTrainedTokenizerFast:
    """As Phi-3 has it: special tokens that take the spaces beside them."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True, rstrip=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True, lstrip=True, rstrip=True)], special_tokens=True)
    tokenizer.chat_template = "<|user|>\n{{ messages[0]['content'] }}<|end|>\n<|im_start|>assistant\n"
    return tokenizer


def _bert(backend: Tokenizer) -> PreTrainedTokenizerFast:
    ends = [("[CLS]", backend.token_to_id("[CLS]")), ("[SEP]", backend.token_to_id("[SEP]"))]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **BERT)


def _llama(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **LLAMA)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_bpe": build_tokenizer,
    "byte_bpe_that_strips": byte_bpe_that_strips,
    "word_piece": word_piece,
    "word_level": word_level,
    "unigram": unigram,
    "unigram_with_a_later_token": unigram_with_a_later_token,
    "metaspace_bpe": metaspace_bpe,
}
