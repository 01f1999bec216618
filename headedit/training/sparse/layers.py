"""Which trainable parameters belong to which layer, by the spec, and a layer's edits made weaker for a while.

An edit is whatever training adds to a module that the base model has too: our ``SiteEdit``, a tuner layer of
PEFT, a module that PEFT trains a copy of. What it contributes is the module's output minus its output without
the edit; one rule therefore serves every method, and no parameter is touched.
"""

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headedit.edits.adapter import Adapter
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.specs import HeadSite, Spec, find_sites, find_spec

_PEFT = [
    ("peft.tuners.tuners_utils", "BaseTunerLayer", "base_layer"),
    ("peft.utils.other", "ModulesToSaveWrapper", "original_module"),
]
"""Where PEFT has a class of modules with an edit, and the attribute that is the module without it."""


@dataclass(frozen=True)
class LayerParameters:
    """What is trained in one layer.

    Fields:
        layer: index of the layer, that of its sites; where a model has several stacks, the layers of one
            index are one layer.
        parameters: the trainable parameters that belong to this layer and to no other.
        edits: the modules that hold them, each with what gives the module's output without its edit.
        bare: names of those that are no edit's, such as a weight of the base model, which has no value to
            be without.
    """

    layer: int
    parameters: list[nn.Parameter]
    edits: list[tuple[nn.Module, Callable[..., Any]]]
    bare: list[str]


def find_layers(model: nn.Module, spec: "str | PathLike[str] | Spec | None" = None) -> list[LayerParameters]:
    """The layers that have something to train, ordered by index.

    A site of edits is in the layer of its ``HeadSite``. Everything else is in a layer where it stands inside
    one of the modules in the stack that the spec's paths go through, those without a site counted in.
    What stands in no layer, or is shared by several, is left out.

    Args:
        model: a model with edits, PEFT's adapters or both, or a wrapper of one; parameters count as
            trainable where they require a gradient now.
        spec: as for ``attach``; not looked at where nothing but our edits is trained.

    Raises:
        HeadEditError: the spec does not fit the model, or no layer has a trainable parameter.
    """
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    roots: list[tuple[int, nn.Module]] = [
        (site.layer, edit) for m in model.modules() if isinstance(m, Adapter) for site, edit in m.pairs()
    ]
    edited = {id(p) for _, edit in roots for p in edit.parameters()}
    if names.keys() - edited:
        roots += _layer_modules(model, spec)
    owners: dict[int, set[int]] = {}
    for layer, root in roots:
        for parameter in root.parameters():
            owners.setdefault(id(parameter), set()).add(layer)
    found = []
    for layer in sorted({layer for layer, _ in roots}):
        inside = [module for index, root in roots if index == layer for module in root.modules()]
        own = {id(p): p for m in inside for p in m.parameters() if id(p) in names and owners[id(p)] == {layer}}
        if own:
            found.append(_layer_parameters(layer, inside, own, names))
    if not found:
        raise HeadEditError(
            f"This {type(model).__name__} has no trainable parameter inside a layer, so no layers can be chosen to "
            "train. Attach edits or add PEFT's adapters first, and leave their parameters trainable."
        )
    return found


@contextmanager
def attenuated(layers: Iterable[LayerParameters], factor: float) -> Iterator[None]:
    """A context in which the edits of some layers contribute ``factor`` times what they do.

    Raises:
        HeadEditError: inside the context, a tuner layer gives something else than a tensor.
    """
    hooks = []
    try:
        for layer in layers:
            for module, plain in layer.edits:
                hook = partial(_attenuate, plain, factor)
                hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def rolling_out(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients for IST's roll-outs; modes and global random states are afterwards what they were."""
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with evaluating(model), torch.random.fork_rng(cuda), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def loss_of(model: nn.Module, batch: Mapping[str, Any]) -> float:
    """The model's own loss on a batch; a HeadEditError where it gives none."""
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise HeadEditError(
            f"{type(model).__name__} gave no loss on a batch with {', '.join(batch)}, so the roll-outs of IST have no "
            "reward. Give the training set or its collator labels, or use importance=False."
        )
    return float(loss)


def _attenuate(
    plain: Callable[..., Any], factor: float, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
) -> Tensor:
    base = plain(*args, **kwargs)
    if not (isinstance(base, Tensor) and isinstance(output, Tensor)):
        raise HeadEditError(
            f"{_method(module)} gives a {type(output).__name__} and no tensor, so its edit cannot be made weaker "
            "for a roll-out. Use importance=False, which needs no roll-outs."
        )
    return torch.lerp(base, output, factor)


def _layer_parameters(
    layer: int, inside: list[nn.Module], own: dict[int, nn.Parameter], names: dict[int, str]
) -> LayerParameters:
    edits, covered = [], set()
    for module in {id(m): m for m in inside}.values():
        plain = _without_edit(module)
        if plain is None:
            continue
        base = {id(p) for p in plain.parameters()} if isinstance(plain, nn.Module) else set()
        learned = {id(p) for p in module.parameters()} - base
        if learned & own.keys():
            edits.append((module, plain))
            covered |= learned
    return LayerParameters(layer, list(own.values()), edits, [names[key] for key in own if key not in covered])


def _without_edit(module: nn.Module) -> Callable[..., Any] | None:
    """What gives a module's output without its edit; None where it is no edit."""
    if isinstance(module, SiteEdit):
        return _identity
    for where, name, base in _PEFT:  # a model can hold a module of PEFT only where that is imported
        library = sys.modules.get(where)
        if library is not None and isinstance(module, getattr(library, name)):
            plain: Callable[..., Any] = getattr(module, base)
            return plain
    return None


def _identity(z: Tensor, *_: Any) -> Tensor:
    return z


def _method(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _layer_modules(model: nn.Module, spec: "str | PathLike[str] | Spec | None") -> list[tuple[int, nn.Module]]:
    """Every module that is a layer of a stack with sites, with its index."""
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)
    found = find_spec(inner, spec)
    modules = dict(inner.named_modules())
    stacks = {_stack(site, found): None for site in _all_sites(inner, found)}
    return [
        (int(name), child)
        for stack in stacks
        for name, child in modules[stack].named_children()
        if name.isdecimal()  # a stack of layers is a ModuleList
    ]


def _all_sites(model: nn.Module, spec: Spec) -> list[HeadSite]:
    """Sites of every kind that this model has; a spec of several types lists kinds that some of them lack."""
    sites: list[HeadSite] = []
    faults = []
    for kind in spec.kinds():
        try:
            sites += find_sites(model, spec, [kind])
        except HeadEditError as error:
            faults.append(error)
    if not sites:
        raise faults[0]
    return sites


def _stack(site: HeadSite, spec: Spec) -> str:
    """The name of the module that holds a site's layer and its neighbours."""
    for rule in spec.rules(site.kind):
        before, after = rule.path.split("{layer}")
        tail = f"{site.layer}{after}"
        if site.name == f"{before}{tail}":
            return site.path.removesuffix(tail).rstrip(".")
    raise AssertionError(f"{site.path} is a site by no path of {spec.source}")
