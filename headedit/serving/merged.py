"""What engines with model classes of their own do with the biases of a merged checkpoint."""

_WITHOUT_BIAS = {
    "CohereForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
}
"""Classes whose attention output projection has no bias in vLLM 0.32, so that it is dropped without a word."""


def advice_on_biases(model_class: str, added: bool) -> str | None:
    """What to know before a merged checkpoint is served; None where merging has added no bias.

    Args:
        model_class: the class of the merged model.
        added: whether it has biases that the base model has not.
    """
    if not added:
        return None
    if model_class in _WITHOUT_BIAS:
        return (
            f"the offsets are new biases, which vLLM's {model_class} drops without a word: serve the base model by the "
            "plugin ('headedit serve'), or the merged one with 'vllm serve OUT --model-impl transformers'"
        )
    return "the offsets are new biases; an engine that has its own class may drop them, so compare a few tokens once"
