"""What a transformers config says of the text decoder."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from headedit.errors import HeadEditError


def text_config(of: Any) -> Any:
    """The config of the text decoder, of a model or of a config.

    It is always a part of the model's own config, or all of it, never a copy: what is written to it is kept. In a flat
    config of an encoder and a decoder, such as BART's, the decoder's values have names of their own
    (``decoder_layers``).

    Args:
        of: a transformers model, or its config.
    """
    config: Any = of.config if isinstance(of, nn.Module) else of
    found = config.get_text_config(decoder=True)
    flat = config.is_encoder_decoder and type(found) is type(config)  # a copy under other names, read by nobody else
    return config if flat else found


def check_decoder(config: Any) -> None:
    """Raises a HeadEditError where a config is of a type that has an encoder and of which there is no causal LM.

    A type such as BART's, of whose decoder transformers makes a causal LM, passes.

    Args:
        config: of a model of transformers.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False) and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise HeadEditError(
            f"A model of the type '{model_type}' has an encoder and a decoder, and headedit edits causal LMs, which "
            "have a decoder alone, so give a causal LM in its place."
        )


def context_length(of: Any) -> int | None:
    """How many tokens the text decoder of a model or config can attend to; None where the config does not say."""
    length: int | None = getattr(text_config(of), "max_position_embeddings", None)
    return length


def read_config(config: Any, key: str, layer: int, *, spread: bool = True) -> Any:
    """A config value, from the layer's own config where there is one; None where it is absent.

    Args:
        config: the text decoder's.
        key: its name.
        layer: index of the layer.
        spread: read a list at the layer's index.
    """
    for source in (_layer_config(config, layer), config):
        try:
            value = source.get(key) if isinstance(source, Mapping) else getattr(source, key)
        except (AttributeError, RuntimeError):  # some configs raise where layers differ
            continue
        if value is not None:
            if spread and isinstance(value, list | tuple):
                return value[layer] if layer < len(value) else None
            return value
    return None


def _layer_config(config: Any, layer: int) -> Any:
    """The layer's own config, where transformers keeps one for layers that differ; an empty one elsewhere."""
    try:
        return config.per_layer_config[layer]
    except (AttributeError, IndexError, RuntimeError):  # an old version, no such layer, no count of layers
        return {}


def drops_layers(model: Any) -> bool:
    """Whether the model's config has whole layers left out at random in training (LayerDrop, Fan et al. 2020)."""
    configs = [getattr(model, "config", None)]
    configs += [text_config(model)] if configs[0] is not None else []
    return any(bool(v) for config in configs if config is not None for k, v in vars(config).items() if "layerdrop" in k)
