"""Numbers and vectors that a user gives: lists, arrays, scalars and tensors of any real dtype, finite or refused."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from headedit.errors import HeadEditError
from headedit.io.describe import describe


def real_number(value: Any, name: str, expected: str = "a finite number") -> float:
    """A finite number: of Python or numpy, or a tensor or array without dimensions.

    Args:
        value: what was given.
        name: of the argument, for the message.
        expected: what it should be, for the message.

    Raises:
        HeadEditError: it is not a number, or is NaN or infinite.
    """
    values = None if isinstance(value, str | bytes | list | tuple) else _as_double(value)
    if values is None or values.dim() or not math.isfinite(values.item()):
        raise HeadEditError(f"{name}: found {describe(value)}, expected {expected}.")
    return values.item()


def whole_number(value: Any, name: str, expected: str = "a whole number") -> int:
    """A whole number of Python, numpy or torch.

    Args:
        value: what was given.
        name: of the argument, for the message.
        expected: what it should be, for the message.

    Raises:
        HeadEditError: it is not one.
    """
    boolean = isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, numpy.bool_)
    try:
        if not boolean:
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise HeadEditError(f"{name}: found {describe(value)}, expected {expected}.")


def one_or_more(value: Any, name: str) -> int:
    """A whole number above 0; raises a HeadEditError, as ``whole_number`` does, where it is not one."""
    number = whole_number(value, name)
    if number < 1:
        raise HeadEditError(f"{name}: found {number}, expected 1 or more.")
    return number


def head_vector(value: Any, name: str, width: int, dtype: torch.dtype, *, scalar: bool = False) -> Tensor:
    """The values of one head, [width], in double precision on the CPU.

    Args:
        value: a list, an array or a tensor of real numbers.
        name: of the argument, for messages.
        width: the width of the head.
        dtype: the dtype that they will be kept in, in which they must be finite too.
        scalar: whether one number for all of them is accepted; it is returned without dimensions.

    Raises:
        HeadEditError: they are not numbers, of another shape, NaN, infinite or too large for the dtype.
    """
    expected = f"{'a number, or ' if scalar else ''}{width} numbers in a list, an array or a tensor"
    values = _as_double(value)
    if values is None:
        raise HeadEditError(f"{name}: found {_describe_items(value)}, expected {expected}.")
    shape = tuple(values.shape)
    if shape != (width,) and not (scalar and shape == ()):
        raise HeadEditError(
            f"{name}: found shape {shape}, expected ({width},){' or a single number' if scalar else ''}: {expected}."
        )
    wrong = ~values.to(dtype).isfinite().reshape(-1)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        number = float(values.reshape(-1)[place])
        what = f"too large for {str(dtype).removeprefix('torch.')}" if math.isfinite(number) else "not finite"
        where = f" at place {place}" if shape else ""
        raise HeadEditError(f"{name}: found {number:g}{where}, which is {what}; nothing is changed.")
    return values


def _describe_items(value: Any) -> str:
    """What a value that is not real numbers is, with the first item that is none."""
    if isinstance(value, Tensor | numpy.ndarray):
        meta = ", without values, on the meta device" if isinstance(value, Tensor) and value.is_meta else ""
        return f"{describe(value)} and dtype {value.dtype}{meta}"
    items = value if isinstance(value, list | tuple) else ()
    wrong = next((describe(item) for item in items if _as_double(item) is None), "")
    return f"{wrong} in {describe(value)}" if wrong else describe(value)


@torch.no_grad()
def _as_double(value: Any) -> Tensor | None:
    """Real numbers in double precision on the CPU; None where the value is none."""
    if isinstance(value, list | tuple | range):
        rows = [_as_double(item) for item in value]
        same = len({None if row is None else row.shape for row in rows}) == 1
        return torch.stack([row for row in rows if row is not None]) if same and rows[0] is not None else None
    if value is None or isinstance(value, bool | str | bytes | Mapping | set | frozenset):
        return None
    try:
        if isinstance(value, Tensor):
            real = not value.is_complex() and value.dtype is not torch.bool and not value.is_meta
            return value.detach().to("cpu", torch.float64, copy=True) if real else None
        array = numpy.asarray(value if hasattr(value, "__array__") else float(value))
        return torch.tensor(array.astype(numpy.float64)) if array.dtype.kind in "iuf" else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # each library raises its own
        return None
