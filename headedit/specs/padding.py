"""On which sides a model can be padded, as the spec of its type says."""

from typing import Literal

from torch import nn

from headedit.errors import HeadEditError
from headedit.specs.registry import find_spec

Side = Literal["left", "right"]


def takes_padding(model: nn.Module, side: Side, *, unknown: bool = False) -> bool:
    """Whether masked padding on a side changes nothing, as the spec of the model's type says.

    Args:
        model: the model.
        side: where a batch is padded.
        unknown: the answer for a type without a spec.
    """
    try:
        found = find_spec(model).padding
    except HeadEditError:
        return unknown
    return found in ("both", side)
