"""The adapters of a model as its submodule ``headedit``, which leads from the model to the handle of its edits."""

from typing import Any

from torch import nn

from headedit.specs import MODULE_NAME


class AttachedAdapters(nn.ModuleDict):
    """The adapters of a model by name, as its submodule ``headedit``; it leads to their handle, in copies too."""

    _handle: Any


def handle_of(model: nn.Module) -> Any:
    """The handle of the edits on a model; None where it has none."""
    adapters = model._modules.get(MODULE_NAME)
    return adapters._handle if isinstance(adapters, AttachedAdapters) else None
