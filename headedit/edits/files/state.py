"""The record of all adapters on a model as a tensor, which a state dict holds next to their parameters.

format_version; versions, base_model and spec as in the files of saved edits; active, the name of the active adapter;
merged, the names of those in the weights; adapters, by name: config, strength and sites as in the files; idle, the
indices of the sites without an open head; frozen_gates, whether the gates alone are frozen, as hardened ones are. The
tensor holds the bytes of the JSON, padded with spaces, so that states of about the same length have the same shape.
"""

import json
import re
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter
from headedit.edits.files.record import (
    adapter_record,
    base_record,
    check_keys,
    check_site_rows,
    read_config,
    recorded_date,
)
from headedit.errors import HeadEditError
from headedit.io.json import read_json
from headedit.specs import Spec

EXTRA_STATE = "_extra_state"
"""The name under which torch keeps the extra state of a module in a state dict."""

_VERSION = 1
_LARGEST = 2**24  # bytes; an adapter of a 70B model has 15 kB
_STRONGEST = 1e6
_UNIT = 4096  # bytes
_PARAMETER = re.compile(r"site_edits\.(\d+)\.(?:vectors|gates)\.(\w+)")


def pack_state(model: nn.Module, spec: Spec, adapters: dict[str, Adapter], active: str, merged: list[str]) -> Tensor:
    """The record of adapters as a tensor of bytes, uint8 [length]."""
    record = {
        "format_version": _VERSION,
        **base_record(model, spec),
        "active": active,
        "merged": merged,
        "adapters": {
            name: {
                **adapter_record(adapter),
                "idle": [i for i, edit in enumerate(adapter) if edit.idle],
                "frozen_gates": has_frozen_gates(adapter),
            }
            for name, adapter in adapters.items()
        },
    }
    text = json.dumps(record).encode()
    return torch.frombuffer(bytearray(text + b" " * (-len(text) % _UNIT)), dtype=torch.uint8)


def unpack_state(state: object, where: str) -> dict[str, Any]:
    """The record in a tensor; each adapter's config is an ``EditConfig``.

    Raises:
        HeadEditError: it is damaged, or says what edits cannot be.
    """
    right = isinstance(state, Tensor) and state.dtype == torch.uint8 and state.dim() == 1 and not state.is_meta
    if not isinstance(state, Tensor) or not right or len(state) > _LARGEST:
        what = f"{state.dtype} of shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        raise HeadEditError(f"{where}: found {what}, expected the bytes that headedit wrote.")
    whole = state.full_tensor() if hasattr(state, "full_tensor") else state
    try:
        found = read_json(bytes(whole.detach().cpu().numpy()).rstrip(b" "))
    except (ValueError, RecursionError) as error:
        raise HeadEditError(f"{where}: cannot be read ({error}).") from None
    kinds = {"format_version": int, "base_model": dict, "spec": dict, "active": str, "merged": list, "adapters": dict}
    record = check_keys(found, kinds, where)
    if record["format_version"] != _VERSION:
        raise HeadEditError(
            f"{where}: format_version is {record['format_version']}, this headedit reads {_VERSION}: it was written "
            "by a newer one."
        )
    if record["active"] not in record["adapters"] or any(name not in record["adapters"] for name in record["merged"]):
        raise HeadEditError(f"{where}: names an adapter that it does not describe; it is damaged.")
    for name, part in record["adapters"].items():
        here = f"{where}: {name:.80}"
        check_keys(part, {"config": dict, "sites": list, "idle": list}, here)
        check_site_rows(part["sites"], here)
        part["config"] = read_config(part, here)
        recorded_date(part, here)
        strength, count = part.get("strength"), len(part["sites"])
        if type(strength) not in (int, float) or not abs(strength) <= _STRONGEST:
            raise HeadEditError(f"{here}: strength: found {strength!r:.80}, expected a number.")
        if any(type(i) is not int or not 0 <= i < count for i in part["idle"]):
            raise HeadEditError(f"{here}: idle: found {part['idle']!r:.80}, expected indices from 0 to {count - 1}.")
        if part.get("frozen_gates") not in (True, False, None):
            raise HeadEditError(f"{here}: frozen_gates: found {part['frozen_gates']!r:.80}, expected true or false.")
    return record


def has_frozen_gates(adapter: Adapter) -> bool | None:
    """Whether the gates are frozen and the vectors are not; None where all are, or there are no gates."""
    trainable = adapter.trainable()
    if not trainable or not any(len(edit.gates) for edit in adapter):
        return None
    return not any(".gates." in name for name in trainable)


def set_frozen_gates(adapter: Adapter, frozen: bool | None) -> None:
    """Freezes or unfreezes the gates alone; None leaves them as they are."""
    if frozen is None or has_frozen_gates(adapter) in (frozen, None):
        return
    if adapter._frozen is not None:
        names = [name for name, _ in adapter.named_parameters() if ".gates." in name]
        adapter._frozen = [name for name in adapter._frozen if ".gates." not in name] + ([] if frozen else names)
        return
    for edit in adapter:
        edit.gates.requires_grad_(not frozen)


def tensor_names(rows: list[dict[str, Any]], names: list[str]) -> dict[str, str]:
    """The names of an adapter's parameters in a state dict, by their names in the files of saved edits."""
    found = {}
    for name in names:
        matched = _PARAMETER.fullmatch(name)
        if matched is not None and len(matched[1]) < 9 and int(matched[1]) < len(rows):
            found[f"{rows[int(matched[1])]['name']}.{matched[2]}"] = name
    return found
