"""A tiny random model of every causal-LM type of transformers, to check a spec on where no weights are at hand.

``tiny_configs.jsonl`` has a line a type with the values of a config that builds in milliseconds, and the names of
its classes where transformers does not tell them.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from headedit.errors import HeadEditError, suggest


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    lines = Path(__file__).with_name("tiny_configs.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["model_type"]: row for row in map(json.loads, lines)}


def tiny_configs() -> dict[str, dict[str, Any]]:
    """The values of a tiny config for each model type."""
    return {model_type: row["config"] for model_type, row in _rows().items()}


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
            classes = _rows()[model_type].get("classes")
            if classes is None:
                model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**values))
            else:  # a decoder whose config the registry of transformers does not list
                config_class, model_class = (getattr(transformers, name) for name in classes)
                model = model_class(config_class(**values))
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
