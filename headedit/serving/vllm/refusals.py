"""The settings of vLLM with which edits are not served: each is refused at start, by name, with what to do instead."""

from collections.abc import Sequence
from typing import Any

from headedit.errors import HeadEditError
from headedit.serving.saved_edit import SavedEdit

_DRAFTS = ("ngram",)  # the ways of speculative decoding that were tried


def check_config(config: Any, edits: Sequence[SavedEdit]) -> None:
    """Raises a HeadEditError that names the first setting of vLLM with which edits are not served.

    Args:
        config: vLLM's.
        edits: those that are served from the start.
    """
    _refuse(_obstacle(config, edits))


def _obstacle(config: Any, edits: Sequence[SavedEdit]) -> tuple[str, str] | None:
    """A setting with which edits are not served, and what to do; None where there is none."""
    parallel, cache, scheduler = config.parallel_config, config.cache_config, config.scheduler_config
    if config.lora_config is not None:
        return "LoRA adapters (--enable-lora)", "Merge the adapter into the model's weights first."
    if config.model_config.runner_type != "generate":
        return f"the runner '{config.model_config.runner_type}'", "Serve the model for generation."
    if config.model_config.is_encoder_decoder or config.model_config.is_multimodal_model:
        return "a model of several parts", "Serve its text decoder alone."
    if config.kv_transfer_config is not None:
        return "--kv-transfer-config", "Leave it out: a store of keys and values does not know which edit made them."
    if cache.kv_sharing_fast_prefill:
        return "--kv-sharing-fast-prefill", "Leave it out: layers then have other tokens than the pass."
    if parallel.enable_dbo or parallel.use_ubatching:
        return "--enable-dbo", "Leave it out: a layer then has other tokens than the pass."
    untried = ("prefill_context", "decode_context", "pipeline", "data")
    for size in (f"{way}_parallel_size" for way in untried):
        if getattr(parallel, size, 1) > 1:
            return f"--{size.replace('_', '-')} above 1", "It was not tried; start several servers instead."
    speculative = config.speculative_config
    if speculative is not None:
        if speculative.method not in _DRAFTS:
            return f"the speculative method '{speculative.method}'", f"Take one of {', '.join(_DRAFTS)}."
        needed = scheduler.max_num_seqs * (speculative.num_speculative_tokens + 1)
        if scheduler.max_num_batched_tokens < needed:
            return (
                f"fewer than {needed} tokens a batch and {speculative.num_speculative_tokens} speculative tokens",
                f"Set --max-num-batched-tokens to {needed} or more, or lower --max-num-seqs.",
            )
    return next((found for edit in edits if (found := _obstacle_of(config, edit)) is not None), None)


def check_edit(config: Any, edit: SavedEdit) -> None:
    """Raises a HeadEditError where an edit is not served with the settings of vLLM, and others are."""
    _refuse(_obstacle_of(config, edit))


def _obstacle_of(config: Any, edit: SavedEdit) -> tuple[str, str] | None:
    """What an edit is not served with, and what to do; None where there is nothing."""
    if edit.positions == "all" or not config.use_v2_model_runner:
        return None
    return (
        f"vLLM's model runner V2 where they act on some tokens alone, as '{edit.name}' does "
        f"(positions={edit.positions!r})",
        "Set VLLM_USE_V2_MODEL_RUNNER=0.",
    )


def _refuse(found: tuple[str, str] | None) -> None:
    if found is not None:
        what, instead = found
        raise HeadEditError(f"Edits are not served with {what}. {instead}")
