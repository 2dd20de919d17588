"""Tiny random models of many architectures and a small tokenizer, made on the spot.

Each is a few hundred kilobytes and is saved as a model folder, as a user has one. Weights are random but large enough
that a wrong position, a wrong mask or a wrong row changes a vector visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from memvec.model.backbone import Backbone
from memvec.model.checkpoint import Checkpoint
from memvec.model.packing import PackedLinear

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "请用一个Token总结以下文本：她喜欢喝茶，也喜欢在周末爬山。他住在上海，养了一只猫。",
    "This sentence means in one word. She likes tea and hikes on weekends. He lives in Lisbon with a cat.",
    "I moved to Berlin in 2021; my sister's birthday is on May 4th, and I am allergic to peanuts.",
]
MODEL_SIZE = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**MODEL_SIZE, **HEADS, **TOKENS, "tie_word_embeddings": False, "initializer_range": 0.2}
# A window of 8 tokens is shorter than the prompts, so that sliding-window layers do slide.
WINDOW = 8


def gpt2() -> GPT2Config:
    return GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.2, **TOKENS)


def gpt_neox() -> GPTNeoXConfig:
    return GPTNeoXConfig(**MODEL_SIZE, num_attention_heads=4, num_hidden_layers=3, initializer_range=0.2, **TOKENS)


def gemma3() -> Gemma3TextConfig:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=WINDOW, layer_types=kinds)


def qwen3_moe() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(**DECODER, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


def lfm2() -> Lfm2Config:
    """A hybrid: convolution layers between attention layers."""
    return Lfm2Config(**DECODER, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False)


def qwen2_5_vl() -> Qwen2_5_VLConfig:
    """A vision-language model, of which memvec runs the text path."""
    text = {**DECODER, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": 32}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **TOKENS)


def nearly_free() -> LlamaConfig:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    return LlamaConfig(**{**DECODER, **small, "num_hidden_layers": 1})


ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**DECODER),
    "qwen2": lambda: Qwen2Config(**DECODER),
    "qwen3": lambda: Qwen3Config(**DECODER, head_dim=8),
    "gemma3": gemma3,
    "mistral": lambda: MistralConfig(**DECODER, sliding_window=WINDOW),
    "phi3": lambda: Phi3Config(**DECODER),
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "qwen3_moe": qwen3_moe,
    "lfm2": lfm2,
    "qwen2_5_vl": qwen2_5_vl,
}
# A model of almost no cost: what a run takes with it is what everything but the model takes.
NEARLY_FREE = "nearly_free"
# Those whose layers keep no state but keys and values, so that the prompts' shared prefix is computed once.
SHARES_PREFIX = set(ARCHITECTURES) - {"lfm2"}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer of 400 tokens with special tokens and a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(architecture: str) -> PreTrainedModel:
    """Builds a full model with its language-model head and random weights, the same at every call."""
    torch.manual_seed(0)
    config = nearly_free() if architecture == NEARLY_FREE else ARCHITECTURES[architecture]()
    auto = AutoModelForImageTextToText if architecture == "qwen2_5_vl" else AutoModelForCausalLM
    return auto.from_config(config).eval()


def save_model(folder: Path, architecture: str = "llama") -> Path:
    """Saves a tiny model and its tokenizer as a model folder."""
    build_model(architecture).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def save_bidirectional(folder: Path) -> Path:
    """Saves a model in which every token sees every other, so that padding and a shared prefix change its vectors."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(**DECODER, head_dim=8, use_bidirectional_attention=True)
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def load_backbone(folder: Path, *, dtype: torch.dtype = torch.float32, layer: int = -1) -> Backbone:
    """Loads the backbone of a saved model, as a run does."""
    return Backbone(Checkpoint(str(folder)).load_decoder(dtype), layers=(layer,)).eval()


def is_packed(decoder: torch.nn.Module) -> bool:
    """Whether a decoder's weights are packed now."""
    return any(isinstance(module, PackedLinear) for module in decoder.modules())
