"""A tiny random model of every causal-LM type of transformers, and where its heads are known to be.

``zoo.jsonl`` has a line a type: a config that builds, and for every site its path, heads and width (no sites: a
type without heads). The facts were read off live models, independently of the specs that are tested with them.
"""

import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Facts:
    """A config that builds a tiny model, and its sites as (path, heads, width)."""

    config: dict[str, Any]
    sites: list[tuple[str, int, int]]
    position: str


def _read() -> dict[str, Facts]:
    rows = map(json.loads, Path(__file__).with_name("zoo.jsonl").read_text().splitlines())
    return {
        row["model_type"]: Facts(row["config"], [tuple(site) for site in row["sites"]], row["position"]) for row in rows
    }


ZOO = _read()

UNBUILDABLE = {
    "gemma4_assistant": "transformers 5.23 raises when it builds its cache-sharing modes",
    "gemma4_unified_assistant": "transformers 5.23 raises when it builds its cache-sharing modes",
    "gemma3n": "its vision tower needs the package timm",
}
_DECODERS = {  # the decoder of a larger model, with a config that the registry of transformers does not list
    "musicgen": (MusicgenDecoderConfig, MusicgenForCausalLM),
    "musicgen_melody": (MusicgenMelodyDecoderConfig, MusicgenMelodyForCausalLM),
}
WITHOUT_HEADS = sorted(name for name, facts in ZOO.items() if not facts.sites)
BUILDABLE = sorted(set(ZOO) - set(UNBUILDABLE))
WITH_HEADS = sorted(set(BUILDABLE) - set(WITHOUT_HEADS))


def zoo_model(model_type: str, values: dict[str, Any] | None = None) -> PreTrainedModel:
    """A fresh model with random weights, the same at every call, in eval mode, perhaps of another config."""
    values = ZOO[model_type].config if values is None else values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if model_type in _DECODERS:
            config_class, model_class = _DECODERS[model_type]
            return model_class(config_class(**values)).eval()
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**values)).eval()


def zoo_ids(model: PreTrainedModel, length: int = 7) -> torch.Tensor:
    """Token ids that the model takes, [1, length], or [codebooks, length] for a model over audio codes."""
    rows = getattr(model.config, "num_codebooks", 1) or 1
    return torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(1))
