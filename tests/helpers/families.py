"""Tiny random models of many families, at least one of every kind of position, attention, mixture and state there is.

They are for what is quick: a forward pass or two of each. Whole runs use the few of `tests.helpers.models`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from tests.helpers.models import DECODER, TOKENS, WINDOW

DEPTH = 4
ATTENTION = {**DECODER, "num_hidden_layers": DEPTH}
SMALL_HEADS = {"head_dim": 8}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPED_EXPERTS = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
ONE_DENSE_LAYER = {"first_k_dense_replace": 1}
STATE = {
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
ALTERNATING = [SLIDING, FULL, SLIDING, FULL]
LINEAR_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MULTIMODAL_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
VISION = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": 32}
# Prompts are longer than this, so that a rope which changes with length does change.
ORIGINAL_LENGTH = 16
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}

# What the configuration of each family has besides `ATTENTION`, and its `model_type` where that is not its name.
FAMILIES: dict[str, dict[str, Any]] = {
    # Rotary positions, and every way to stretch them.
    "llama": {},
    "llama_linear_rope": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "llama_yarn_rope": {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "llama_untied_last_state": {"model_type": "llama", "tie_last_hidden_states": False},
    "phi3_long_rope": {
        "model_type": "phi3",
        "rope_parameters": LONG_ROPE,
        "original_max_position_embeddings": ORIGINAL_LENGTH,
    },
    # It changes beyond the longest prompt that memvec makes for it.
    "llama_dynamic_rope": {"model_type": "llama", "rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 24},
    "qwen2": {},
    "qwen3": SMALL_HEADS,
    "mistral": {"sliding_window": WINDOW},
    "ministral": {"sliding_window": WINDOW, "layer_types": ALTERNATING, **SMALL_HEADS},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "stablelm": {},
    "persimmon": {},
    "starcoder2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "glm": SMALL_HEADS,
    "glm4": SMALL_HEADS,
    "ernie4_5": SMALL_HEADS,
    "exaone4": {"sliding_window": WINDOW, "layer_types": ALTERNATING},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "seed_oss": SMALL_HEADS,
    "hunyuan_v1_dense": SMALL_HEADS,
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW, "layer_types": ALTERNATING},
    "granite": {},
    "cohere": {},
    "cohere2": {"sliding_window": WINDOW, "layer_types": ALTERNATING},
    "helium": SMALL_HEADS,
    "apertus": {},
    "arcee": SMALL_HEADS,
    "diffllama": {},
    "gemma": SMALL_HEADS,
    "gemma2": {"sliding_window": WINDOW, "layer_types": ALTERNATING, **SMALL_HEADS},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ALTERNATING, **SMALL_HEADS},
    "gemma3n_text": {
        "sliding_window": WINDOW,
        "layer_types": ALTERNATING,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 400,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        **SMALL_HEADS,
    },
    "gemma4_text": {
        "sliding_window": WINDOW,
        "layer_types": ALTERNATING,
        "vocab_size_per_layer_input": 400,
        "hidden_size_per_layer_input": 8,
        **SMALL_HEADS,
    },
    # Learned positions, ALiBi, and other ways of old.
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW, "num_layers": DEPTH},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 64},
    "bloom": {},
    "falcon": {"alibi": True},
    "falcon_rotary": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": DEPTH},
    "xglm": {"d_model": 32, "num_layers": DEPTH, "attention_heads": 4, "ffn_dim": 64},
    "biogpt": {},
    "ctrl": {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "dff": 64, "n_positions": 256},
    # Mixtures of experts, latent attention, attention sinks, chunked attention.
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, **SMALL_HEADS},
    "olmoe": EXPERTS,
    "phimoe": EXPERTS,
    "granitemoe": EXPERTS,
    "jetmoe": {"kv_channels": 8, **EXPERTS},
    "deepseek_v2": {**LATENT, **GROUPED_EXPERTS, **ONE_DENSE_LAYER},
    "deepseek_v3": {**LATENT, **GROUPED_EXPERTS, **ONE_DENSE_LAYER},
    "glm4_moe": {**SMALL_HEADS, **GROUPED_EXPERTS, **ONE_DENSE_LAYER},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    "dots1": {**SMALL_HEADS, **GROUPED_EXPERTS, **ONE_DENSE_LAYER, "layer_types": [FULL] * DEPTH},
    "afmoe": {**SMALL_HEADS, **EXPERTS, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    "gpt_oss": {**SMALL_HEADS, **EXPERTS, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    "minimax": {**SMALL_HEADS, **EXPERTS, "layer_types": [LINEAR, FULL] * 2, "block_size": 8},
    "llama4_text": {
        **SMALL_HEADS,
        **EXPERTS,
        "intermediate_size_mlp": 64,
        "attention_chunk_size": WINDOW,
        "layer_types": ["chunked_attention", FULL] * 2,
    },
    # States that are not keys and values: convolutions, linear attention, state spaces, recurrences.
    "lfm2": {"layer_types": ["conv", FULL] * 2, "block_auto_adjust_ff_dim": False},
    "qwen3_next": {
        **SMALL_HEADS,
        **EXPERTS,
        **LINEAR_HEADS,
        "shared_expert_intermediate_size": 32,
        "layer_types": [LINEAR, FULL] * 2,
    },
    "olmo_hybrid": {**LINEAR_HEADS, "layer_types": [LINEAR, FULL] * 2},
    "mamba": STATE,
    "mamba2": {**STATE, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    "falcon_mamba": STATE,
    "falcon_h1": {**STATE, "mamba_d_ssm": 64},
    "bamba": {**STATE, "attn_layer_indices": [1, 3]},
    "jamba": {**STATE, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1},
    "nemotron_h": {
        **STATE,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
    },
    "zamba2": {**STATE, "mamba_headdim": 8, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": WINDOW, **SMALL_HEADS},
    "rwkv": {"attention_hidden_size": 32},
    # The text path of vision-language models.
    "qwen2_5_vl": {"text_config": {**ATTENTION, "rope_parameters": MULTIMODAL_ROPE}, "vision_config": VISION},
}


def build_family(family: str) -> PreTrainedModel:
    """Builds a full model with its language-model head and random weights, the same at every call."""
    torch.manual_seed(0)
    options = dict(FAMILIES[family])
    model_type = options.pop("model_type", family)
    base = TOKENS if "text_config" in options else ATTENTION
    config = AutoConfig.for_model(model_type, **{**base, **options})
    is_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return (AutoModelForCausalLM if is_text else AutoModelForImageTextToText).from_config(config).eval()
