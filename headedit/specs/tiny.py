"""A tiny random model of every causal-LM type of transformers, to check a spec on without the weights of a real one.

``tiny_configs.jsonl`` has a line per type with the values of a config that builds in milliseconds, and the name of
the config's class where the registry of transformers does not list it. Types that the installed transformers lacks
are left out.
"""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel

from headedit.errors import HeadEditError, suggest
from headedit.hf.building import build_model


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    lines = Path(__file__).with_name("tiny_configs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return {row["model_type"]: row for row in rows if "config_class" in row or row["model_type"] in CONFIG_MAPPING}


def tiny_configs() -> dict[str, dict[str, Any]]:
    """The values of a tiny config for each causal-LM type that the installed transformers has."""
    return {model_type: row["config"] for model_type, row in _rows().items()}


def tiny_config(model_type: str, values: dict[str, Any] | None = None) -> Any:
    """The tiny config of a model type, as transformers makes one.

    Args:
        model_type: a causal-LM type of transformers.
        values: the values of the config; by default the tiny ones.

    Raises:
        HeadEditError: there are no tiny values for the type.
    """
    if model_type not in _rows():
        raise HeadEditError(f"There is no tiny config of the type '{model_type}'.{suggest(model_type, _rows())}")
    row = _rows()[model_type]
    name = row.get("config_class")  # of a decoder that the registry of transformers leaves out
    config_class = CONFIG_MAPPING[model_type] if name is None else getattr(transformers, name)
    return config_class(**copy.deepcopy(row["config"] if values is None else values))


def tiny_model(model_type: str, values: dict[str, Any] | None = None) -> PreTrainedModel:
    """A model with random weights, the same at every call, in eval mode.

    Args:
        model_type: a causal-LM type of transformers.
        values: the values of its config; by default the tiny ones.

    Raises:
        HeadEditError: there is no config for the type, or the installed transformers cannot build it.
    """
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(tiny_config(model_type, values))
    except HeadEditError:
        raise
    except Exception as error:  # whatever a config or model class raises
        raise HeadEditError(
            f"The installed transformers cannot build a tiny {model_type} ({type(error).__name__}: {error}). "
            "Give a folder or hub id of a model instead."
        ) from None
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def tiny_ids(model: PreTrainedModel, length: int = 7) -> torch.Tensor:
    """Token ids that a tiny model takes, [1, length], or [codebooks, length] for a model over audio codes."""
    rows = getattr(model.config, "num_codebooks", 1) or 1
    return torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(1))
