"""Fingerprints of a model and its edits, by which a report says what was measured."""

import hashlib
from typing import Any

import torch
from torch import nn

from headedit.edits.handle import HeadEdits
from headedit.hf.names import portable_name
from headedit.version import __version__


def fingerprint(model: nn.Module, edits: HeadEdits | None) -> dict[str, Any]:
    """Name, size and dtype of a model, a digest of its edits, and the versions."""
    config: Any = model.config
    first = next(model.parameters())
    inside = set() if edits is None else set(edits.module.parameters())
    return {
        "model": portable_name(getattr(config, "_name_or_path", "")) or type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters() if p not in inside),
        "dtype": str(first.dtype).removeprefix("torch."),
        "edits": None if edits is None else _digest(edits),
        "headedit": __version__,
    }


@torch.no_grad()
def _digest(edits: HeadEdits) -> str:
    found = hashlib.sha256(f"{edits.strength}".encode())
    for name, tensor in sorted(edits.module.state_dict().items()):
        found.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
