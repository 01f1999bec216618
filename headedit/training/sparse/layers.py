"""The trainable parameters of each layer, and a context that attenuates the edits of some layers.

An edit is whatever training adds to a module of the base model: our ``SiteEdit``, a tuner layer of PEFT, a module of
which PEFT trains a copy. Its contribution is the module's output minus the output without the edit, so one rule serves
every method, and no parameter is changed.
"""

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
"""PEFT's classes of modules with an edit: module, class, and the attribute that is the module without its edit."""


@dataclass(frozen=True)
class LayerParameters:
    """The trainable parameters of one layer.

    Fields:
        layer: index of the layer, as in its sites; in a model with several stacks, layers of the same index are one.
        parameters: the trainable parameters that belong to this layer alone.
        edits: the modules that hold them, each with a function that returns the module's output without its edit.
        bare: names of the parameters that belong to no edit, such as a weight of the base model, and so have no
            value at which they have no effect.
    """

    layer: int
    parameters: list[nn.Parameter]
    edits: list[tuple[nn.Module, Callable[..., Any]]]
    bare: list[str]


def find_layers(model: nn.Module, spec: "str | PathLike[str] | Spec | None" = None) -> list[LayerParameters]:
    """The layers with trainable parameters, ordered by index.

    An edit of ours is in the layer of its ``HeadSite``. Every other parameter is in a layer if it is inside one of the
    modules of the stack on the spec's paths, including modules without a site. Parameters in no layer, and those that
    several layers share, are left out.

    Args:
        model: a model with edits, PEFT's adapters or both, or a wrapper of one; a parameter is trainable if it
            requires a gradient now.
        spec: as for ``attach``; not needed if only our edits are trained.

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
    """A context in which the contribution of some layers' edits is multiplied by ``factor``.

    Raises:
        HeadEditError: inside the context, if a tuner layer returns something else than a tensor.
    """
    with ExitStack() as stack:
        for layer in layers:
            for module, plain in layer.edits:
                hook = module.register_forward_hook(partial(_attenuate, plain, factor), with_kwargs=True)
                stack.callback(hook.remove)
        yield


@contextmanager
def rolling_out(model: nn.Module) -> Iterator[None]:
    """A context for IST's roll-outs: eval mode, no gradients; restores modes and global random states at its end."""
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with evaluating(model), torch.random.fork_rng(cuda), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def loss_of(model: nn.Module, batch: Mapping[str, Any]) -> float:
    """The model's own loss on a batch.

    Raises:
        HeadEditError: the model returns no loss.
    """
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise HeadEditError(
            f"{type(model).__name__} returned no loss on a batch with {', '.join(batch)}, so the roll-outs of IST have "
            "no reward. Give the training set or its collator labels, or use importance=False."
        )
    return float(loss)


def _attenuate(
    plain: Callable[..., Any], factor: float, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
) -> Tensor:
    base = plain(*args, **kwargs)
    if not (isinstance(base, Tensor) and isinstance(output, Tensor)):
        raise HeadEditError(
            f"{_method(module)} returns a {type(output).__name__} instead of a tensor, so its edit cannot be "
            "attenuated for a roll-out. Use importance=False, which needs no roll-outs."
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
    """A function that returns a module's output without its edit; None if the module is not an edit."""
    if isinstance(module, SiteEdit):
        return _identity
    for where, name, base in _PEFT:  # a model can have a module of PEFT only if PEFT is imported
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
    """Every layer of a stack with sites, with its index."""
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
    """The sites of every kind in this model; a spec of several model types lists kinds that some of them lack."""
    sites: list[HeadSite] = []
    errors = []
    for kind in spec.kinds():
        try:
            sites += find_sites(model, spec, [kind])
        except HeadEditError as error:
            errors.append(error)
    if not sites:
        raise errors[0]
    return sites


def _stack(site: HeadSite, spec: Spec) -> str:
    """The name of the module that holds the layers, of which a site's is one."""
    for rule in spec.rules(site.kind):
        before, after = rule.path.split("{layer}")
        tail = f"{site.layer}{after}"
        if site.name == f"{before}{tail}":
            return site.path.removesuffix(tail).rstrip(".")
    raise AssertionError(f"{site.path} is a site that no path of {spec.source} matches")
