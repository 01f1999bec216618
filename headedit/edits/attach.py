"""Puts edits on a model, new or saved: finds the sites, makes the parameters, registers the hooks."""

from os import PathLike

from torch import nn

from headedit.edits.adapter import Adapter, edited_sites
from headedit.edits.attached import handle_of
from headedit.edits.config import EditConfig
from headedit.edits.files.storage import read_with_spec
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
            asks for layers or sites that the model lacks, or the model has edits already.
    """
    config = EditConfig() if config is None else config
    check_unattached(model)
    found = find_spec(model, spec)
    return HeadEdits(model, found, Adapter(edited_sites(model, found, config), config))


def load(
    model: nn.Module,
    path: "str | PathLike[str]",
    *,
    spec: "str | PathLike[str] | Spec | None" = None,
    revision: str | None = None,
) -> HeadEdits:
    """Attaches saved edits to a base model that has none.

    Args:
        model: the base model, without edits.
        path: a folder that ``save_pretrained`` wrote, or the id of a repository on the Hugging Face hub.
        spec: a spec or spec file to use; by default the registry's, or else the one saved with the edits.
        revision: the revision of a hub repository.

    Returns:
        The handle; the model's logits are those of the model that was saved, bit for bit; of edits that were saved
        hardened, those of the model after ``harden()``, with frozen gates.

    Raises:
        HeadEditError: nothing is found, a file is damaged, or the edits were made for another model, in
            which case the message lists the differences.
    """
    check_unattached(model)
    return HeadEdits(model, *read_with_spec(model, spec, path, revision))


def handle(model: nn.Module) -> HeadEdits:
    """The handle of the edits on a model.

    Raises:
        HeadEditError: the model has no edits.
    """
    found = handle_of(model)
    if not isinstance(found, HeadEdits):
        raise HeadEditError(f"This {type(model).__name__} has no edits; headedit.attach(model) puts some on it.")
    return found


def check_unattached(model: nn.Module) -> None:
    """Raises a HeadEditError where the model carries edits already."""
    if MODULE_NAME in model._modules:
        raise HeadEditError(
            f"This {type(model).__name__} has edits attached already; headedit.handle(model) "
            "gives their handle, and its detach() takes them off."
        )
