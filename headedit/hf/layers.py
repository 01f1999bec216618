"""The stack of layers that a module is in."""

from torch import nn


def stack_of(model: nn.Module, path: str) -> str | None:
    """The name of the list of layers that a module's path goes through, the outermost; None where it is in none.

    Args:
        model: the model.
        path: dotted name of a module in it, such as ``model.layers.3.self_attn.o_proj``, which gives ``model.layers``.
    """
    parts = path.split(".")
    for i, part in enumerate(parts):
        above = ".".join(parts[:i])
        if part.isdigit() and isinstance(model.get_submodule(above), nn.ModuleList):
            return above
    return None
