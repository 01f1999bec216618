"""The strength of an adapter, a dial: one factor on the vectors of all its sites."""

import torch
from torch import Tensor

from headedit.edits.values import real_number
from headedit.errors import HeadEditError

_STRONGEST = 1e6  # so that nothing overflows
_EXPECTED = "a number such as 0.5; 1 is as trained"


class Strength:
    """A factor that all sites of an adapter share, so that setting it is one step for all of them.

    Args:
        value: the factor.

    Fields:
        value: the factor.
        factor: the factor as a scalar on the CPU, which a compiled model takes as an input; None for 1.
    """

    def __init__(self, value: float = 1.0) -> None:
        self.set(value)

    def set(self, value: float) -> None:
        """Sets the factor."""
        self.value = value
        self.factor: Tensor | None = None if value == 1 else torch.tensor(value, dtype=torch.float64, device="cpu")


def check_strength(value: object) -> float:
    """A strength as a number.

    Raises:
        HeadEditError: it is not a number, not finite, or so large that vectors would overflow.
    """
    number = real_number(value, "strength", _EXPECTED)
    if not abs(number) <= _STRONGEST:
        raise HeadEditError(f"strength: found {value}, expected {_EXPECTED}.")
    return number
