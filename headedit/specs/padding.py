"""On which sides a model can be padded, as the spec of its type says."""

from typing import Literal
from weakref import WeakKeyDictionary

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
    if model not in _known:  # asked in every step, and finding a spec takes milliseconds
        try:
            _known[model] = find_spec(model).padding
        except HeadEditError:
            _known[model] = None
    found = _known[model]
    return unknown if found is None else found in ("both", side)


_known: "WeakKeyDictionary[nn.Module, str | None]" = WeakKeyDictionary()
