"""Where vLLM's models keep the modules whose input is a site, by the architecture that vLLM runs.

A row is here because a tiny model of it gave the tokens that transformers gives with the same edits; see
``tests/serving/test_architectures.py``, which has a case for each row.
"""

from typing import NamedTuple


class Paths(NamedTuple):
    """The names of modules in vLLM's model, ``{layer}`` standing for the layer's index.

    Fields:
        attention: the projection of the heads.
        mlp: the down projection; None where it is not one module of the layer, as with experts.
    """

    attention: str
    mlp: str | None


_USUAL = Paths("model.layers.{layer}.self_attn.o_proj", "model.layers.{layer}.mlp.down_proj")
_EXPERTS = _USUAL._replace(mlp=None)

ARCHITECTURES: dict[str, Paths] = {
    "LlamaForCausalLM": _USUAL,
    "MistralForCausalLM": _USUAL,
    "Qwen2ForCausalLM": _USUAL,
    "Qwen3ForCausalLM": _USUAL,
    "Gemma2ForCausalLM": _USUAL,
    "Gemma3ForCausalLM": _USUAL,
    "Olmo2ForCausalLM": _USUAL,
    "Phi3ForCausalLM": _USUAL,
    "GPTNeoXForCausalLM": Paths("model.layers.{layer}.attention.dense", "model.layers.{layer}.mlp.dense_4h_to_h"),
    "MixtralForCausalLM": _EXPERTS,
    "Qwen3MoeForCausalLM": _EXPERTS,
}
