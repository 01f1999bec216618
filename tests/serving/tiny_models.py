"""Tiny models on disk with edits of them, and what transformers gives with these edits."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

import headedit

SIZES = {
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
WIDE = {**SIZES, "head_dim": 32}
NOT_GROUPED = {
    key: value for key, value in SIZES.items() if key != "num_key_value_heads"
}  # vLLM reads it in any config
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING = {"sliding_window": 16, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}

CONFIGS = {
    "llama": WIDE,
    "mistral": WIDE,
    "qwen2": SIZES,
    "qwen3": WIDE,
    "gemma2": {**WIDE, **SLIDING},
    "gemma3_text": {**WIDE, **SLIDING},
    "olmo2": SIZES,
    "phi3": SIZES,
    "gpt_neox": NOT_GROUPED,
    "mixtral": {**WIDE, **EXPERTS},
    "qwen3_moe": {**WIDE, **EXPERTS},
}
PROMPT = [5, 9, 17, 3, 44, 8, 101, 77, 23, 64, 12, 90]
TOKENS = 8


def save_model(model_type: str, folder: Path) -> None:
    """A model of random weights, sharp enough that no two logits are close."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**CONFIGS[model_type])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                tied = "embed" in name and config.tie_word_embeddings  # a token would predict itself
                parameter.normal_(0.0, 0.15 if parameter.dim() > 1 and not tied else 0.02)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(SIZES["vocab_size"])}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", pad_token="t0").save_pretrained(folder)


def save_edits(model: torch.nn.Module, folder: Path, names: list[str], **config) -> None:
    """Edits of several heads, others for each name."""
    for i, name in enumerate(names):
        edits = headedit.attach(model, config=headedit.EditConfig(**config))
        generator = torch.Generator().manual_seed(100 + i)
        for site in edits.sites:
            for head in range(0, site.heads, 1 + i % 2):
                vectors = torch.randn(2, site.head_dim, generator=generator)
                edits.set_head(site.layer, head, scale=1 + 0.7 * vectors[0], offset=2.0 * vectors[1], kind=site.kind)
        edits.save_pretrained(folder / name, card=False)
        edits.detach()


def generate(model, prompt, edit=None, strength=None, tokens=TOKENS) -> list[int]:
    """The tokens that transformers gives, with a folder of edits."""
    handle = None if edit is None else headedit.load(model, edit)
    if strength is not None:
        handle.strength = strength
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None
    )
    if handle is not None:
        handle.detach()
    return out[0, len(prompt) :].tolist()
