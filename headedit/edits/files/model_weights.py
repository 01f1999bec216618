"""Edits in the weights of a model that its own ``save_pretrained`` or a Trainer wrote with the edits attached.

Only the edits are read, lazily, from ``model.safetensors`` or the files that ``model.safetensors.index.json`` names.
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from headedit.edits.files.format import LARGEST_TENSORS, read_bounded
from headedit.edits.files.record import check_keys
from headedit.edits.files.state import EXTRA_STATE, tensor_names, unpack_state
from headedit.errors import HeadEditError
from headedit.io.json import read_json
from headedit.specs import MODULE_NAME

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_STATE_KEY = f"{MODULE_NAME}.{EXTRA_STATE}"
_LARGEST_INDEX = 2**26  # bytes


def read_from_weights(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], str] | None:
    """The record of all adapters, their tensors by adapter and by the names of the files, and the place for messages.

    None where the folder has no such weights, or they hold no edits.

    Raises:
        HeadEditError: a file is damaged, or says what edits cannot be.
    """
    places = _places(folder)
    states = [key for key in places if key == _STATE_KEY or key.endswith(f".{_STATE_KEY}")]
    if not states:
        return None
    prefix = states[0].removesuffix(EXTRA_STATE)
    where = f"{places[states[0]]}: {states[0]}"
    if len(states) > 1:
        raise HeadEditError(f"{folder}: the weights hold the edits of {len(states)} models; load their parts by hand.")
    ours = {key: file for key, file in places.items() if key.startswith(prefix)}
    found = _read(ours)
    record = unpack_state(found.pop(states[0]), where)
    tensors = {}
    for name, part in record["adapters"].items():
        own = f"{prefix}{name}."
        keys = tensor_names(part["sites"], [key.removeprefix(own) for key in found if key.startswith(own)])
        tensors[name] = {ours_name: found[own + key] for ours_name, key in keys.items()}
    return record, tensors, where


def _places(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a model's weights; empty where there are no such weights."""
    index, single = folder / INDEX_FILE, folder / WEIGHTS_FILE
    if index.is_file():
        try:
            content = read_json(read_bounded(index, _LARGEST_INDEX))
        except (OSError, ValueError, RecursionError) as error:
            raise HeadEditError(f"{index}: cannot be read ({error}).") from None
        names = check_keys(content, {"weight_map": dict}, str(index))["weight_map"]
        for name in names.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise HeadEditError(f"{index}: names {name!r:.80}, expected the name of a file in this folder.")
        return {key: folder / name for key, name in names.items() if MODULE_NAME in key.split(".")}
    return dict.fromkeys(_keys(single), single) if single.is_file() else {}


def _keys(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except Exception as error:  # its own, and the system's
        raise HeadEditError(f"{file}: is not a safetensors file ({error}).") from None


def _read(places: dict[str, Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    size = 0
    for file in sorted(set(places.values())):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in (key for key, place in places.items() if place == file):
                    found[key] = opened.get_tensor(key)
                    size += found[key].nbytes
                    if size > LARGEST_TENSORS:
                        raise HeadEditError(f"{file}: the edits in it are larger than edits can be.")
        except HeadEditError:
            raise
        except Exception as error:  # its own, the system's, and that of a dtype that torch lacks
            raise HeadEditError(f"{file}: the edits in it cannot be read ({error}).") from None
    return found
