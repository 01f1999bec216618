"""The language model of a config, with weights that nobody trained."""

import importlib
import inspect
from typing import Any

import torch
from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.config import check_decoder, text_config


def build_model(config: Any, **options: Any) -> nn.Module:
    """A model of a config: the causal LM of its type, or the image-text model where the type has no causal LM.

    Args:
        config: a config of transformers; that of a text decoder alone is enough.
        options: what ``from_config`` of transformers takes, such as ``dtype``.

    Raises:
        ValueError: transformers has no such model. Whatever else the model's class raises is passed on.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForCausalLM

    found = (
        MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
        or _class_of_text_decoder(config)
    )
    if found is None or not found.__module__.startswith(
        "transformers."
    ):  # no such model, or one that a user registered
        model: nn.Module = AutoModelForCausalLM.from_config(config, **options)
        return model
    text = text_config(config)
    chosen = text if found.config_class is type(text) else config
    model = found._from_config(chosen, **options)
    assert isinstance(model, nn.Module)
    return model


def build_without_weights(config: Any, **options: Any) -> nn.Module:
    """``build_model`` on the meta device.

    Raises:
        HeadEditError: transformers cannot build it, or it has an encoder and a decoder.
    """
    check_decoder(config)
    try:
        with torch.device("meta"):
            return build_model(config, **options)
    except Exception as error:  # whatever a config or model class raises
        raise HeadEditError(
            f"transformers cannot build a causal LM from this {type(config).__name__} "
            f"({type(error).__name__}: {error})."
        ) from None


def _class_of_text_decoder(config: Any) -> Any:
    """The causal LM that stands next to the config of a text decoder, which the registry of transformers leaves out."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        models = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return None
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return next(
        (
            cls
            for name, cls in inspect.getmembers(models, inspect.isclass)
            if name in names and getattr(cls, "config_class", None) is type(config)
        ),
        None,
    )
