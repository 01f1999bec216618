"""Config flags that give a projection the bias it lacks, found by building the model on the meta device.

The flag of one projection usually gives others a bias too; a plain checkpoint must hold all of them.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.merge.projection import takes_bias
from headedit.hf.config import text_config
from headedit.specs import MODULE_NAME, HeadSite, Spec


@dataclass(frozen=True)
class BiasFlags:
    """Config flags that give projections a bias.

    Fields:
        keys: the flags, to be set to True in the text decoder's config.
        biases: the parameters that the model then has besides its own, by name, on the meta device.
    """

    keys: list[str]
    biases: dict[str, Tensor]


def bias_flags_for(model: nn.Module, spec: Spec, sites: list[HeadSite]) -> BiasFlags | None:
    """The config flags with which a model of the same class has a bias at some sites; None where it can have none.

    The spec's ``bias_key`` is tried first, then every flag that is off and has ``bias`` in its name, then all of
    them; each by building the model on the meta device. No flag is needed where every site has its bias.
    """
    wanted = [f"{site.path}.bias" for site in sites if lacks_bias(site)]
    if not wanted:
        return BiasFlags([], {})
    if not all(takes_bias(site) for site in sites):
        return None
    first = None if spec.merge is None else spec.merge.bias_key
    return find_bias_flags(type(model), model.config, first, wanted, plain_names(model))


def find_bias_flags(
    cls: type[nn.Module], config: Any, first: str | None, wanted: Collection[str], there: Collection[str]
) -> BiasFlags | None:
    """Flags as in ``bias_flags_for``, for a class, its config, the names wanted and the names it has already."""
    values = text_config(config).to_dict()
    offered = [] if first is None else [first]
    offered += [key for key, value in values.items() if "bias" in key and value in (False, None) and key != first]
    chosen: list[str] = []
    best: dict[str, Tensor] = {}
    for keys in [*([key] for key in offered), offered]:  # InternLM3 takes its two only together
        if best.keys() >= set(wanted):
            break
        tried = list(dict.fromkeys([*chosen, *keys]))
        added = _added(cls, config, tried, there)
        if added is not None and len(added.keys() & set(wanted)) > len(best.keys() & set(wanted)):
            chosen, best = tried, added
    return BiasFlags(chosen, best) if best.keys() >= set(wanted) else None


def _added(cls: type[nn.Module], config: Any, keys: list[str], there: Collection[str]) -> dict[str, Tensor] | None:
    """The biases that flags add; None where they change anything else, or there is no such model."""
    config = copy.deepcopy(config)
    for key in keys:
        setattr(text_config(config), key, True)
    try:
        config = type(config).from_dict(config.to_dict())  # as it is read from a checkpoint, with its checks
        with torch.device("meta"):
            shell: nn.Module = cls(config)
    except Exception:  # whatever a config or model class raises for a flag that it does not know
        return None
    names = dict(shell.named_parameters(remove_duplicate=False))
    added: dict[str, Tensor] = {name: p for name, p in names.items() if name not in set(there)}
    return added if names.keys() >= set(there) and all(name.endswith(".bias") for name in added) else None


def plain_names(model: nn.Module) -> list[str]:
    """The names of a model's parameters, without those of its edits."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [name for name in names if not name.startswith(f"{MODULE_NAME}.")]


def lacks_bias(site: HeadSite) -> bool:
    """Whether a site's module has no bias."""
    return site.module._parameters.get("bias") is None
