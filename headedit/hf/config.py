"""What a transformers config says of the text decoder."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def text_config(model: nn.Module) -> Any:
    """The config of the model's text decoder."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def read_config(config: Any, key: str, layer: int, *, spread: bool = True) -> Any:
    """A config value, from the layer's own config where there is one; None where it is absent."""
    for source in (_own_config(config, layer), config):
        try:
            value = source.get(key) if isinstance(source, Mapping) else getattr(source, key)
        except (AttributeError, RuntimeError):  # some configs raise where layers differ
            continue
        if value is not None:
            if spread and isinstance(value, list | tuple):
                return value[layer] if layer < len(value) else None
            return value
    return None


def _own_config(config: Any, layer: int) -> Any:
    """The layer's own config, where transformers keeps one for layers that differ; an empty one elsewhere."""
    try:
        return config.per_layer_config[layer]
    except (AttributeError, IndexError, RuntimeError):  # an old version, no such layer, no count of layers
        return {}


def decoder_config(config: Any) -> Any:
    """The part of a config that describes the text decoder."""
    return config.get_text_config(decoder=True)


def context_length(model: nn.Module) -> int | None:
    """The most tokens that the model's text decoder can read; None where its config does not say."""
    found = getattr(text_config(model), "max_position_embeddings", None)
    return None if found is None else int(found)
