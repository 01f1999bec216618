"""The tensors of an adapter by their names in files, and whether they can be saved."""

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter
from headedit.errors import HeadEditError


def parameters_of(adapter: Adapter) -> dict[str, nn.Parameter]:
    """The parameters by ``{site}.{name}``, such as ``layers.0.self_attn.o_proj.offset``."""
    return {
        f"{site.name}.{name}": parameter
        for site, edit in adapter.pairs()
        for parameters in (edit.vectors, edit.gates)
        for name, parameter in parameters.items()
    }


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """The values of all parameters on the CPU, by ``{site}.{name}``.

    Raises:
        HeadEditError: they are not there whole and finite.
    """
    tensors = {}
    for site, edit in adapter.pairs():
        edit.check_whole()
        for name, value in edit.values().items():
            where = f"{site.name}.{name}"
            if value.is_meta:
                raise HeadEditError(
                    f"{where} is on the meta device and has no value. Load the edits, or move the model off the meta "
                    "device with to_empty, before saving them."
                )
            tensors[where] = value.detach().cpu().contiguous()
    check_finite(tensors)
    return tensors


@torch.no_grad()
def check_effective(adapter: Adapter) -> None:
    """Raises a HeadEditError where a parameter of an adapter, or its effective value, is not whole and finite."""
    tensors_of(adapter)
    for site, edit in adapter.pairs():
        check_finite({f"{site.name}.{vector}": value for vector, value in edit.effective().items()})


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raises a HeadEditError that names site and head where a value of a head is NaN or infinite.

    Args:
        tensors: [heads, ...], by ``{site}.{name}``.
    """
    for where, tensor in tensors.items():
        bad = (~torch.isfinite(tensor)).flatten(1 if tensor.dim() > 1 else 0)
        heads = (bad.any(1) if bad.dim() > 1 else bad).nonzero().flatten().tolist()
        if heads:
            site, _, name = where.rpartition(".")
            more = f", and of {len(heads) - 1} more of its heads" if len(heads) > 1 else ""
            raise HeadEditError(
                f"{site}: the {name.replace('_', ' ')} of head {heads[0]}{more} is not finite (NaN or infinity), so "
                "these edits are not saved, and nothing on disk has changed. Restore an earlier state of them, or set "
                "the head with set_head."
            )
