"""Saved edits changed on disk: another config in the header, or the form in which older versions wrote them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from headedit.edits.files.format import CONFIG_FILE, TENSOR_FILE
from headedit.edits.files.header import header_text, with_text


def older_pair(config: bytes, tensors: bytes) -> tuple[bytes, bytes]:
    """The two files as a version wrote them that had the config, with the hash of the tensors, in the JSON alone."""
    plain = safetensors.torch.save(safetensors.torch.load(tensors), metadata={"format": "headedit"})
    data = {key: value for key, value in json.loads(config).items() if key != "data_sha256"}
    data["tensors_sha256"] = hashlib.sha256(plain).hexdigest()
    return (json.dumps(data, indent=2) + "\n").encode(), plain


def as_older(folder: Path) -> Path:
    """Rewrites a folder of saved edits as an older version wrote it, and returns it."""
    files = [folder / CONFIG_FILE, folder / TENSOR_FILE]
    for file, payload in zip(files, older_pair(*(file.read_bytes() for file in files)), strict=True):
        file.write_bytes(payload)
    return folder


def rewrite_header(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes the config in the header of saved edits, and leaves the copy as it is."""
    file = folder / TENSOR_FILE
    config = json.loads(header_text(file.read_bytes()))
    change(config)
    file.write_bytes(with_text(file.read_bytes(), json.dumps(config)))
