"""The small random models in which edits are planted."""

import hashlib
from typing import Any

import torch
from torch import nn

from headedit.errors import HeadEditError, suggest

LAYERS, HEADS, WIDTH, VOCABULARY, CONTEXT = 4, 8, 16, 128, 64
SHAPES = ("llama", "qwen3", "gpt2")
OUTPUT_STD = 0.5
"""Standard deviation of the output layer, which makes a random model as confident as a trained one."""


def check_shape(shape: str) -> None:
    """Raises a HeadEditError if there is no such shape."""
    if shape not in SHAPES:
        raise HeadEditError(f"There is no shape '{shape}'.{suggest(shape, SHAPES, title='Shapes')}")


def build(shape: str, seed: int) -> nn.Module:
    """The unedited model of a shape and a seed, in eval mode.

    Raises:
        HeadEditError: there is no such shape.
    """
    check_shape(shape)
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    modern = {
        "hidden_size": HEADS * WIDTH,
        "intermediate_size": 2 * HEADS * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "head_dim": WIDTH,
        "max_position_embeddings": CONTEXT,
    }
    old = {
        "n_embd": HEADS * WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": 2 * HEADS * WIDTH,
        "n_positions": CONTEXT,
    }
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    made = {
        "llama": lambda: LlamaConfig(num_key_value_heads=HEADS, **modern, **common),
        "qwen3": lambda: Qwen3Config(num_key_value_heads=2, **modern, **common),
        "gpt2": lambda: GPT2Config(**old, **dropout, **common),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number_of(f"{shape} {seed}", "weights"))
        model: nn.Module = AutoModelForCausalLM.from_config(made[shape]()).eval()
        model.get_parameter("lm_head.weight").data.normal_(std=OUTPUT_STD)
    return model


def number_of(name: str, what: str) -> int:
    """A seed for each thing that is drawn for a problem, so that none depends on how much was drawn for another."""
    return int.from_bytes(hashlib.sha256(f"{name} {what}".encode()).digest()[:7], "big")
