"""Whether the weights of a model in a folder are all there, without reading them."""

import os
from pathlib import Path

from headedit.errors import HeadEditError
from headedit.hf.loading import split_gguf
from headedit.io.json import parse_json

_WHOLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_weights(name: str) -> None:
    """Raises a HeadEditError where a folder of a model has no weights, or lacks some of their files.

    Args:
        name: a folder, a GGUF file, or the id of a model on the hub, of which nothing is checked.
    """
    folder, gguf = split_gguf(name)
    if gguf and os.path.isdir(folder) and not os.path.isfile(name):
        raise HeadEditError(f"{name}: there is no such file.")
    if gguf or not os.path.isdir(folder):
        return
    place = Path(folder)
    if any((place / file).is_file() for file in _WHOLE):
        return
    index = next((place / file for file in _INDEX if (place / file).is_file()), None)
    if index is None:
        raise HeadEditError(f"{name}: holds no weights; expected {_WHOLE[0]}, or {_INDEX[0]} and the files it names.")
    found = parse_json(index.read_text(encoding="utf-8"), str(index))
    parts = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(parts, dict):
        raise HeadEditError(f"{index}: has no weight_map, which says where each weight is.")
    missing = sorted({str(part) for part in parts.values() if not (place / str(part)).is_file()})
    if missing:
        raise HeadEditError(f"{name}: lacks {len(missing)} files of its weights, the first: {missing[0]}.")
