"""Saved edits as a server needs them: checked against the model, named by their content, as vectors of a strength."""

import hashlib
import json
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter
from headedit.edits.files.record import adapter_record
from headedit.edits.files.storage import read, read_adapter
from headedit.edits.files.values import check_effective, tensors_of
from headedit.edits.site_edit import affine_all
from headedit.edits.strength import check_strength
from headedit.errors import HeadEditError

_DIGITS = 32


@dataclass(frozen=True)
class SavedEdit:
    """What a request needs to know of saved edits.

    Fields:
        name: the one that requests choose it by.
        path: the folder.
        digest: the hash of the content, in hexadecimal.
        strength: the one it was saved with.
        positions: the tokens that it acts on.
        kinds: of its sites.
    """

    name: str
    path: str
    digest: str
    strength: float
    positions: str
    kinds: tuple[str, ...]


def read_for(model: nn.Module, name: str, path: "str | PathLike[str]") -> SavedEdit:
    """Saved edits that fit a model.

    Args:
        model: of transformers; it may be on the meta device.
        name: the one that requests will choose the edits by.
        path: a folder of saved edits.

    Raises:
        HeadEditError: nothing is found, a file is damaged, a value is not finite, or the edits were made for another
            model.
    """
    read_adapter(model, None, path, None)
    adapter = read_values(path)
    kinds = tuple(adapter.kinds())
    return SavedEdit(name, str(path), digest(adapter), adapter.strength, adapter.config.positions, kinds)


def read_values(path: "str | PathLike[str]") -> Adapter:
    """Saved edits without a model, in eval mode.

    Raises:
        HeadEditError: nothing is found, a file is damaged, or a value is not finite.
    """
    adapter = read(path).eval()
    check_effective(adapter)
    return adapter


def digest(adapter: Adapter) -> str:
    """A hash of all that decides what edits do."""
    record = {key: value for key, value in adapter_record(adapter).items() if key != "date"}
    text = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors_of(adapter).items()):
        text.update(f"{name} {tensor.dtype} ".encode())
        text.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return text.hexdigest()[:_DIGITS]


@torch.no_grad()
def vectors(adapter: Adapter, strength: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The factor on each site's input and the offset added to it, each float32 [heads * head_dim], by the site's name.

    Args:
        adapter: saved edits in eval mode.
        strength: the factor on both vectors; 1 is as trained.
    """
    adapter.strength = strength
    found = {}
    maps = affine_all(list(adapter), next(iter(adapter)).strength.factor)
    for site, (scale, offset) in zip(adapter.sites, maps, strict=True):
        found[site.name] = (
            torch.ones(site.width) if scale is None else scale.float(),
            torch.zeros(site.width) if offset is None else offset.float(),
        )
    return found


def strength_of(value: object, default: float) -> float:
    """A strength that a request asks for.

    Raises:
        HeadEditError: it is not a finite number, or would overflow.
    """
    if value is None:
        return default
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise HeadEditError(f"strength: found '{value}', expected a number such as 0.5.") from None
    return check_strength(value)
