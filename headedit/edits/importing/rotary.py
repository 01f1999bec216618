"""The rotary embedding of JoLA's released Llama class, which reads neither ``rope_theta`` nor ``rope_scaling``.

Its frequencies are 10000^(−2i/d) whatever the config says, which is right for Llama 2 and wrong for Llama 3. JoLA's
classes for other types, such as Qwen2, read the config.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from headedit.hf.config import text_config

RELEASED_BASE = 10000.0
"""The base of the released class."""

_TYPE = "llama"
_DISTANCE = 100  # tokens


def rotary_fault(model: nn.Module) -> str | None:
    """What the released Llama class means for edits that it trained on a base; None where it computes the same.

    Args:
        model: the base model.
    """
    config: Any = text_config(model)
    if getattr(config, "model_type", None) != _TYPE:
        return None
    frequencies = _frequencies(model)
    if frequencies is None:
        return None
    released = released_frequencies(2 * len(frequencies))
    if torch.allclose(frequencies, released, rtol=1e-3):
        return None
    off = int(((frequencies - released).abs() * _DISTANCE > math.pi / 2).sum())
    own, theirs = (2 * math.pi / float(found.min()) for found in (frequencies, released))
    return (
        "JoLA's released Llama class ignores rope_theta and rope_scaling: it works with a rotary base of 10000 and no "
        f"scaling, where this base has {_described(config)}. So the edits were trained, and their published figures "
        f"measured, on a model that attends differently from this one: at a distance of {_DISTANCE} tokens {off} of "
        f"its {len(frequencies)} rotations are off by more than a quarter turn, and its slowest rotation turns once in "
        f"{theirs:,.0f} tokens instead of {own:,.0f}. On the base as it is the edits get other inputs than they were "
        "trained on: evaluate them before you trust them, or train them again."
    )


def released_frequencies(width: int) -> Tensor:
    """The frequencies of the released class for heads of a width, in radians per token, [width / 2]."""
    return RELEASED_BASE ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)


def set_released_rotary(model: nn.Module) -> None:
    """Makes the config of a Llama say what the released class computes; the model itself stays as it is."""
    config: Any = text_config(model)
    config.rope_parameters = {"rope_type": "default", "rope_theta": RELEASED_BASE}


def _frequencies(model: nn.Module) -> Tensor | None:
    found = (getattr(module, "inv_freq", None) for module in model.modules())
    first = next((values for values in found if isinstance(values, Tensor) and not values.is_meta), None)
    return None if first is None else first.detach().to("cpu", torch.float64)


def _described(config: Any) -> str:
    given = dict(getattr(config, "rope_parameters", None) or {})
    base, kind = given.get("rope_theta", RELEASED_BASE), given.get("rope_type", "default")
    return f"a base of {base:,.0f}" + ("" if kind == "default" else f" and scaling of the type {kind}")
