"""A tiny random model of every causal-LM type of transformers, to check a spec on where no weights are at hand.

``tiny_configs.jsonl`` has a line a type with the values of a config that builds in milliseconds.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForCausalLM,
    PreTrainedModel,
)

from headedit.errors import HeadEditError, suggest

_DECODERS = {  # the decoder of a larger model, with a config that the registry of transformers does not list
    "musicgen": (MusicgenDecoderConfig, MusicgenForCausalLM),
    "musicgen_melody": (MusicgenMelodyDecoderConfig, MusicgenMelodyForCausalLM),
}


@functools.cache
def tiny_configs() -> dict[str, dict[str, Any]]:
    """The values of a tiny config for each model type."""
    lines = Path(__file__).with_name("tiny_configs.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["model_type"]: row["config"] for row in map(json.loads, lines)}


def tiny_model(model_type: str, values: dict[str, Any] | None = None) -> PreTrainedModel:
    """A model with random weights, the same at every call, in eval mode.

    Args:
        model_type: a causal-LM type of transformers.
        values: those of its config; by default the tiny ones.

    Raises:
        HeadEditError: there is no config for the type, or the installed transformers cannot build it.
    """
    if model_type not in tiny_configs():
        raise HeadEditError(f"There is no tiny config of the type '{model_type}'.{suggest(model_type, tiny_configs())}")
    values = tiny_configs()[model_type] if values is None else values
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if model_type in _DECODERS:
                config_class, model_class = _DECODERS[model_type]
                model = model_class(config_class(**values))
            else:
                model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**values))
    except Exception as error:  # whatever a config or model class raises
        raise HeadEditError(
            f"The installed transformers cannot build a tiny {model_type} ({type(error).__name__}: {error}). "
            "Give a folder or hub id of a model instead."
        ) from None
    return model.eval()


def tiny_ids(model: PreTrainedModel, length: int = 7) -> torch.Tensor:
    """Token ids that a tiny model takes, [1, length], or [codebooks, length] for a model over audio codes."""
    rows = getattr(model.config, "num_codebooks", 1) or 1
    return torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(1))
