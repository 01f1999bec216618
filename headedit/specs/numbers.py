"""Reads the numbers and conditions that a spec names off a live model's config and modules."""

import re
from typing import Any

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.config import read_config
from headedit.specs.schema import NumberRule, Spec

_COMPARISON = re.compile(r"\s*(>=|<=|>|<)\s*(-?[\d.]+)\s*")


def number(
    rule: int | str | NumberRule, config: Any, parent: nn.Module, layer: int, spec: Spec, where: str
) -> int | None:
    """The number that a rule names for one site; None where the config has no value for it.

    Args:
        rule: a number, a config key, or a ``NumberRule``.
        config: the text decoder's config.
        parent: the module that holds the site.
        layer: index of the layer.
        spec: the spec, for messages.
        where: names the file, site and key in messages.

    Raises:
        HeadEditError: the module has no such attribute, the layer's type has no entry, or what was found is
            not a whole number above 0.
    """
    if isinstance(rule, int):
        rule = NumberRule(value=rule)
    elif isinstance(rule, str):
        rule = NumberRule(config=rule)
    value: Any
    if rule.by_layer_type is not None:
        kind = layer_type(config, layer, spec)
        if kind not in rule.by_layer_type:
            raise HeadEditError(f"{where}: by_layer_type has no entry for '{kind}', the type of layer {layer}.")
        value = number(rule.by_layer_type[kind], config, parent, layer, spec, where)
    elif rule.module is not None:
        if not hasattr(parent, rule.module):
            raise HeadEditError(f"{where}: {type(parent).__name__} has no attribute '{rule.module}'.")
        value = getattr(parent, rule.module)
    else:
        value = rule.value if rule.config is None else read_config(config, rule.config, layer)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeadEditError(f"{where}: found {value!r}, expected a whole number.")
    result, rest = divmod(value * rule.times, rule.divide)
    if result < 1 or rest:
        raise HeadEditError(f"{where}: {value} * {rule.times} / {rule.divide} is not a whole number above 0.")
    return result


def layer_type(config: Any, layer: int, spec: Spec) -> str:
    """The entry of the config's ``layer_types`` for a layer; a HeadEditError where it has none."""
    types = read_config(config, "layer_types", layer, spread=False)
    if not isinstance(types, list | tuple) or layer >= len(types):
        raise HeadEditError(f"{spec.source}: layer_types: the config lists no type for layer {layer}.")
    return str(types[layer])


def meets(config: Any, key: str, wanted: int | float | bool | str) -> bool:
    """Whether a config value is the one wanted, or compares as a text such as ``">1"`` says."""
    value = read_config(config, key, 0, spread=False)
    comparison = _COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    if comparison is None or isinstance(value, bool) or not isinstance(value, int | float):
        return bool(value == wanted)
    sign, bound = comparison[1], float(comparison[2])
    return {">": value > bound, "<": value < bound, ">=": value >= bound, "<=": value <= bound}[sign]
