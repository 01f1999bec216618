"""Tiny random models of every model type that has a spec, and where their heads are known to be.

``FACTS`` holds, for each type, a config that builds, the path of the site in the first layer, the number of
heads and their width.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedModel,
)

from headedit import HeadEdits

TOKENS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
WIDE = {**COMMON, "head_dim": 16}
LAYERS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
LLAMA_PATH = "model.layers.0.self_attn.o_proj"

FACTS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "llama": (WIDE, LLAMA_PATH, 4, 16),
    "olmo": (COMMON, LLAMA_PATH, 4, 8),
    "olmo2": (COMMON, LLAMA_PATH, 4, 8),
    "olmo3": ({**COMMON, **LAYERS}, LLAMA_PATH, 4, 8),
    "granite": (COMMON, LLAMA_PATH, 4, 8),
    "cohere": (COMMON, LLAMA_PATH, 4, 8),
    "cohere2": ({**COMMON, **LAYERS}, LLAMA_PATH, 4, 8),
    "smollm3": (COMMON, LLAMA_PATH, 4, 8),
    "mistral": ({**WIDE, "sliding_window": 16}, LLAMA_PATH, 4, 16),
    "ministral": ({**WIDE, **LAYERS}, LLAMA_PATH, 4, 16),
    "mixtral": ({**WIDE, **EXPERTS}, LLAMA_PATH, 4, 16),
    "qwen2": (COMMON, LLAMA_PATH, 4, 8),
    "qwen2_moe": ({**COMMON, **EXPERTS, "shared_expert_intermediate_size": 16}, LLAMA_PATH, 4, 8),
    "qwen3": (WIDE, LLAMA_PATH, 4, 16),
    "qwen3_moe": ({**COMMON, **EXPERTS}, LLAMA_PATH, 4, 8),
    "gemma": (WIDE, LLAMA_PATH, 4, 16),
    "gemma2": ({**WIDE, **LAYERS}, LLAMA_PATH, 4, 16),
    "gemma3_text": ({**WIDE, **LAYERS}, LLAMA_PATH, 4, 16),
    "gemma3": (
        {"text_config": {**WIDE, **LAYERS, "model_type": "gemma3_text"}, "vision_config": VISION},
        "model.language_model.layers.0.self_attn.o_proj",
        4,
        16,
    ),
    "phi3": (COMMON, LLAMA_PATH, 4, 8),
    "gpt2": (
        {**TOKENS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "transformer.h.0.attn.c_proj",
        4,
        8,
    ),
    "gpt_neox": (COMMON, "gpt_neox.layers.0.attention.dense", 4, 8),
    "opt": (
        {
            **{k: v for k, v in COMMON.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
        "model.decoder.layers.0.self_attn.out_proj",
        4,
        8,
    ),
    "falcon": ({**COMMON, "num_kv_heads": 2, "ffn_hidden_size": 48}, "transformer.h.0.self_attention.dense", 4, 8),
}


def tiny_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A fresh model with random weights, the same at every call, in eval mode."""
    values = {**copy.deepcopy(FACTS[model_type][0]), **changes}
    config = CONFIG_MAPPING[model_type](**values)
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING
    cls = mapping[type(config)] if type(config) in mapping else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if model_type == "gemma3":
        cls = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(config).eval()


def randomise(edits: HeadEdits, seed: int = 0) -> None:
    """Gives every vector and gate a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in edits.vector_parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for parameter in edits.gate_parameters():
            parameter.copy_(4 * torch.randn(parameter.shape, generator=generator))


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits without gradient."""
    with torch.no_grad():
        result: Tensor = model(input_ids=ids).logits
    return result
