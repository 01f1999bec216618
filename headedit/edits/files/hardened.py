"""The hardened form of saved edits: only open heads, with their effective values, [open heads, head_dim]."""

import itertools

import torch
from torch import Tensor

from headedit.edits.adapter import Adapter
from headedit.edits.files.values import check_effective
from headedit.edits.gates import SATURATED
from headedit.errors import HeadEditError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes that edits can have."""

_WHOLE = (torch.int32, torch.int64)


def is_hardened(adapter: Adapter) -> bool:
    """Whether the gates are frozen, all exactly open or closed, so that the hardened form loses nothing."""
    gates = [gate for edit in adapter for gate in edit.gates.values()]
    if not gates or any(gate.requires_grad for gate in gates) or not _has_one_dtype(adapter):
        return False
    values = torch.cat([value.float().cpu() for edit in adapter for value in edit.gate_values().values()])
    return bool(((values == 0) | (values == 1)).all())


@torch.no_grad()
def pack(adapter: Adapter) -> dict[str, Tensor]:
    """The effective values of an adapter in the hardened form; the adapter does not change.

    Raises:
        HeadEditError: the parameters have several dtypes, which the form cannot hold, or a value is not finite.
    """
    if not _has_one_dtype(adapter):
        raise HeadEditError(
            "The parameters of these edits have several dtypes, so that they cannot be saved hardened. Bring them to "
            "one, edits.module.float(), or save them with hardened=False."
        )
    check_effective(adapter)
    tensors = {}
    for site, edit in adapter.pairs():
        for vector, effective in edit.effective().items():
            heads = edit.is_open(vector).cpu().nonzero().flatten()
            if len(heads):
                tensors[f"{site.name}.{vector}"] = effective.cpu()[heads].contiguous()
                tensors[f"{site.name}.{vector}_heads"] = heads.to(torch.int32)
    return tensors


def unpack(adapter: Adapter, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The full form of tensors in the hardened form, for an adapter of its shape; its gates are frozen.

    Raises:
        HeadEditError: names, shapes, dtypes or indices do not fit.
    """
    dtypes = {tensor.dtype for name, tensor in tensors.items() if not name.endswith("_heads")}
    if len(dtypes) > 1 or not dtypes.issubset(FLOATS):
        raise HeadEditError(f"{where}: the vectors are {_listed(dtypes)}, expected one dtype of {_listed(FLOATS)}.")
    dtype = dtypes.pop() if dtypes else torch.float32
    full: dict[str, Tensor] = {}
    left = dict(tensors)
    for site, edit in adapter.pairs():
        opened: dict[str, list[int]] = {}
        for vector in edit.vectors:
            name = f"{site.name}.{vector}"
            rows, heads = left.pop(name, torch.zeros(0, edit.head_dim, dtype=dtype)), left.pop(f"{name}_heads", _none())
            opened[vector] = _indices(heads, edit.heads, f"{where}: the tensor '{name}_heads'")
            if rows.shape != (len(opened[vector]), edit.head_dim):
                expected = (len(opened[vector]), edit.head_dim)
                raise HeadEditError(f"{where}: the tensor '{name}' has shape {tuple(rows.shape)}, expected {expected}.")
            full[name] = torch.zeros(edit.heads, edit.head_dim, dtype=dtype)
            full[name][opened[vector]] = rows
        for owner in edit.gated_vectors():
            if any(opened[vector] != opened[owner] for vector in edit.vectors_of(owner)):
                raise HeadEditError(f"{where}: the vectors of {site.name} share their gates, but open other heads.")
            gate = torch.full((edit.heads,), -SATURATED, dtype=dtype)
            gate[opened[owner]] = SATURATED
            full[f"{site.name}.{owner}_gate"] = gate
    if left:
        raise HeadEditError(f"{where}: the tensor '{min(left)}' is not known.")
    return full


def _indices(heads: Tensor, count: int, what: str) -> list[int]:
    if heads.dtype not in _WHOLE or heads.dim() != 1:
        raise HeadEditError(f"{what} is {heads.dtype} of shape {tuple(heads.shape)}, expected a list of whole numbers.")
    found: list[int] = heads.tolist()
    if any(not 0 <= head < count for head in found) or any(a >= b for a, b in itertools.pairwise(found)):
        raise HeadEditError(f"{what} is {str(found)[:60]}, expected rising indices from 0 to {count - 1}.")
    return found


def _has_one_dtype(adapter: Adapter) -> bool:
    return len({parameter.dtype for parameter in adapter.parameters()}) == 1


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int32)


def _listed(dtypes: "set[torch.dtype] | tuple[torch.dtype, ...]") -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
