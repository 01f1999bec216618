"""Puts edits on a model: finds the sites, makes the parameters, registers the hooks."""

from os import PathLike

from torch import nn

from headedit.edits.adapter import Adapter, edited_sites
from headedit.edits.adapter_set import AttachedAdapters
from headedit.edits.config import EditConfig
from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.specs import MODULE_NAME, Spec, find_spec


def attach(
    model: nn.Module,
    spec: "str | PathLike[str] | Spec | None" = None,
    config: EditConfig | None = None,
) -> HeadEdits:
    """Hooks edits into a causal LM, in place, and freezes everything else.

    A fresh edit is the identity, bit for bit in eval mode, unless ``config.init_std`` asks for noise. The
    parameters are float32, whatever the model's dtype, and a submodule ``headedit`` of the model, so that
    optimisers, ``Trainer``, ``state_dict`` and ``.to()`` see them. ``detach`` undoes all of it.

    Args:
        model: a transformers causal LM in any dtype, quantized or sharded.
        spec: a spec, or the path of a spec file; by default found by ``config.model_type``.
        config: the shape of the edits; by default an offset and a scale with a gate each, on every head.

    Returns:
        The handle. The model is the same object.

    Raises:
        HeadEditError: no spec describes the model, the spec does not fit it, it refuses it, the config
            asks for layers or sites that are not there, or the model has edits already.
    """
    config = EditConfig() if config is None else config
    check_unattached(model)
    found = find_spec(model, spec)
    return HeadEdits(model, found, Adapter(edited_sites(model, found, config), config))


def handle(model: nn.Module) -> HeadEdits:
    """The handle of the edits on a model.

    Raises:
        HeadEditError: the model has no edits.
    """
    adapters = model._modules.get(MODULE_NAME)
    if not isinstance(adapters, AttachedAdapters):
        raise HeadEditError(f"This {type(model).__name__} has no edits; headedit.attach(model) puts some on it.")
    found = adapters.handle
    assert isinstance(found, HeadEdits)
    return found


def check_unattached(model: nn.Module) -> None:
    """Raises a HeadEditError where the model carries edits already."""
    if MODULE_NAME in model._modules:
        raise HeadEditError(
            f"This {type(model).__name__} has edits attached already; headedit.handle(model) "
            "gives their handle, and its detach() takes them off."
        )
