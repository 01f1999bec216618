"""Our methods whose cost is measured: the bare model, the upper bound, and edits in several states."""

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headedit.edits import EditConfig, HeadEdits, attach
from headedit.edits.gate_set import GateIndex, freeze_gates
from headedit.specs import HeadSite, find_sites, find_spec

OPEN_SHARE = 0.05
"""The share of heads that are open after hardening."""


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be run.

    Fields:
        model: shares its weights with the model it was made of.
        trained: the parameters that a training step updates.
        penalty: a term that a training step adds to the loss; None for none.
    """

    model: nn.Module
    trained: list[nn.Parameter] = field(default_factory=list)
    penalty: Callable[[], Tensor] | None = None


def share(model: nn.Module, own: tuple[str, ...] = ()) -> nn.Module:
    """A copy of a model with modules of its own, for hooks and modes, and the same tensors.

    Args:
        model: the model.
        own: parts of the names of parameters that are copied nevertheless.
    """
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    memo = {id(t): t for name, t in tensors if not any(part in name for part in own)}
    return copy.deepcopy(model, memo)


def sites_of(model: nn.Module) -> list[HeadSite]:
    """The sites of a model by the registry's spec."""
    return find_sites(model, find_spec(model))


def bare(model: nn.Module) -> Prepared:
    """The model itself."""
    return Prepared(share(model))


def upper_bound(model: nn.Module) -> Prepared:
    """One trainable vector in front of the first site, which bounds the speed of every method that edits that layer."""
    model = share(model)
    first = sites_of(model)[0]
    vector = nn.Parameter(torch.zeros(first.width, device=_device(model)))
    first.module.register_forward_pre_hook(lambda module, args: ((args[0] + vector).to(args[0].dtype), *args[1:]))
    return Prepared(model, [vector])


def edited(model: nn.Module) -> Prepared:
    """Edits of every head, as ``attach`` makes them, and the penalty on their gates."""
    edits = _attached(model)
    return Prepared(edits.model, list(edits.module.parameters()), lambda: 1e-3 * edits.penalty())


def hardened(model: nn.Module) -> Prepared:
    """Edits after ``harden``, with a twentieth of the heads open, chosen at random."""
    edits = _attached(model)
    heads = [(i, head) for i, site in enumerate(edits.sites) for head in range(site.heads)]
    chosen = random.Random(0).sample(heads, max(1, round(OPEN_SHARE * len(heads))))
    freeze_gates(edits.module, [GateIndex(i, vector, head) for i, head in chosen for vector in ("offset", "scale")])
    edits.harden()
    return Prepared(edits.model)


def merged(model: nn.Module) -> Prepared:
    """Edits of every head, merged: a plain model with a bias at the projections."""
    paths = tuple(f"{site.path}." for site in sites_of(model))
    return Prepared(_attached(model, own=paths).merge_and_unload())


def _attached(model: nn.Module, own: tuple[str, ...] = ()) -> HeadEdits:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attach(share(model, own), config=EditConfig(init_std=1e-3))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
