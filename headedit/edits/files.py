"""The two files of saved edits, read and written so that a half-written pair is never used.

Each is written beside its place and moved in, tensors first; the config holds the hash of the tensors, so a
pair that does not belong together is refused.
"""

import hashlib
import json
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from headedit.errors import HeadEditError

CONFIG_FILE = "headedit_config.json"
TENSOR_FILE = "headedit.safetensors"
FORMAT_VERSION = 1
SITE_KEYS = ("layer", "layers", "kind", "name", "heads", "head_dim")


def write_pair(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes both files of saved edits.

    Raises:
        HeadEditError: the folder cannot be made or written.
    """
    payload = safetensors.torch.save(tensors, metadata={"format": "headedit"})
    config = {"format_version": FORMAT_VERSION, **config, "tensors_sha256": hashlib.sha256(payload).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TENSOR_FILE, payload)
        write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise HeadEditError(
            f"{folder}: the edits cannot be written ({error.strerror}). Choose a folder that can be written."
        ) from None


def check_writable(directory: "str | PathLike[str]") -> Path:
    """The folder as a path, after a trial that a file can be written there, of which nothing is left.

    Raises:
        HeadEditError: it cannot be made or written; raised before any work is done.
    """
    folder = Path(directory)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HeadEditError(f"{folder}: cannot be written ({error.strerror}). Choose another output folder.") from None
    finally:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    return folder


def write_atomically(path: Path, payload: bytes) -> None:
    """Writes a file so that at every moment either the old content or the whole new one is there."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def locate(path: "str | PathLike[str]", revision: str | None) -> Path:
    """The folder of saved edits: a local one, or a snapshot of a hub repository."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        files = [CONFIG_FILE, TENSOR_FILE]
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=files))
    except HFValidationError:
        raise HeadEditError(f"{path}: there is no such folder, and it is not the id of a hub repository.") from None
    except Exception as error:  # the hub client raises its own, the transport's and the system's errors
        raise HeadEditError(
            f"{path}: there is no such folder, and the hub did not give it ({type(error).__name__}: {error})."
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config file, with the keys and types that the format has."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise HeadEditError(f"{folder}: holds no {CONFIG_FILE}, so there are no saved edits here.")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
    kinds = {
        "format_version": int,
        "base_model": dict,
        "spec": dict,
        "config": dict,
        "sites": list,
        "tensors_sha256": str,
    }
    for key, kind in kinds.items():
        if not isinstance(saved, dict) or not isinstance(saved.get(key), kind):
            raise HeadEditError(f"{file}: the key '{key}' is missing or not a {kind.__name__}; the file is damaged.")
    if saved["format_version"] != FORMAT_VERSION:
        raise HeadEditError(
            f"{file}: format_version is {saved['format_version']}, this headedit reads {FORMAT_VERSION}; "
            f"it was written by headedit {saved.get('versions', {}).get('headedit', 'of unknown version')}."
        )
    for row in saved["sites"]:
        if not isinstance(row, dict) or set(row) != set(SITE_KEYS):
            raise HeadEditError(f"{file}: sites: found {row!r}, expected the keys {', '.join(SITE_KEYS)}.")
    assert isinstance(saved, dict)
    return saved


def read_tensors(folder: Path, saved: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors beside a config that was read; they must be those it was written with."""
    file = folder / TENSOR_FILE
    try:
        payload = file.read_bytes()
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror}).") from None
    if hashlib.sha256(payload).hexdigest() != saved["tensors_sha256"]:
        raise HeadEditError(
            f"{file}: does not belong to the {CONFIG_FILE} beside it (its hash differs): the file was damaged, "
            "or saving was interrupted. Save the edits again."
        )
    try:
        return safetensors.torch.load(payload)
    except safetensors.SafetensorError as error:
        raise HeadEditError(f"{file}: is not a safetensors file ({error}).") from None
