"""The files of saved edits. ``headedit.safetensors`` is the edits; ``headedit_config.json`` is a copy to read.

The config stands in the header of the tensors' file, so that both are written in one step: a save that is killed leaves
the old edits or the new ones, and of two writers one wins whole. The copy is written after it, and loading ignores it.
Older versions wrote the config into ``headedit_config.json`` alone, with a hash of the tensors' file; such a pair is
still read. A file may come from anyone: nothing in it is run, and its sizes, numbers and names are checked before
anything is made of them.

The config: format_version; versions (headedit, torch, transformers); base_model (name_or_path, revision, model_type,
class, shape); spec and spec_sha256; config, the fields of ``EditConfig``, of which positions are left out where they
are all; strength; date, which the chat template was given in training, if it asked for one; sites, a row each (layer,
layers, kind, name, heads, head_dim); data_sha256, of what follows the header. In the header it is JSON under the key
``config``. The copy has tensors_sha256, of the whole tensors' file, as well, by which older versions read the pair.

The tensors, by format_version:

1. full: for each site ``{name}.offset`` and ``{name}.scale``, [heads, head_dim], and their gate logits
   ``{name}.offset_gate`` and ``{name}.scale_gate``, [heads]; those that the config leaves out are not there.
2. hardened: only open heads. For each vector of a site that has an open gate ``{name}.offset``, [open heads, head_dim],
   strength · gate · vector, and ``{name}.offset_heads``, [open heads], the rising indices of the heads; ``scale``
   likewise.

A file names the lowest version that can read it.
"""

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import safetensors.torch
from torch import Tensor

from headedit.edits.files.header import header_text, split_payload, with_text
from headedit.edits.files.record import check_keys, check_site_rows
from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.io.json import read_json

CONFIG_FILE = "headedit_config.json"
TENSOR_FILE = "headedit.safetensors"
FULL, HARDENED = 1, 2
"""The values of ``format_version``: every head with its gates, or open heads alone."""

LARGEST_CONFIG = 2**22  # bytes
LARGEST_TENSORS = 2**30  # bytes; the full edits of a 70B model have 5 MB
_KINDS = {"format_version": int, "base_model": dict, "spec": dict, "config": dict, "sites": list}
_TRIES = 100


class Pair(NamedTuple):
    """Saved edits as they are in a folder.

    Fields:
        config: the content of the config, with the keys and types that the format has.
        tensors: by name.
        where: the place to name in messages about the config.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    where: str


def write_pair(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], version: int = FULL) -> None:
    """Writes the files of saved edits: in one step the tensors with their config, then its readable copy.

    Raises:
        HeadEditError: the folder cannot be made or written; nothing has changed then.
    """
    payload = safetensors.torch.save(tensors)
    data = hashlib.sha256(split_payload(payload)[1]).hexdigest()
    text = json.dumps({"format_version": version, **config, "data_sha256": data}, separators=(",", ":"))
    payload = with_text(payload, text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TENSOR_FILE, payload)
    except OSError as error:
        raise HeadEditError(
            f"{folder}: the edits cannot be written ({error.strerror}). Choose a folder that can be written."
        ) from None
    try:
        _write_copy(folder, payload)
    except OSError as error:
        warn(
            f"{folder / CONFIG_FILE}: cannot be written ({error.strerror}). The edits are saved without this copy of "
            f"their config, which loading does not need.",
            stacklevel=2,
        )


def _write_copy(folder: Path, payload: bytes) -> None:
    """Writes the readable copy of the config, again where another process has saved edits meanwhile."""
    for _ in range(_TRIES):
        text = header_text(payload)
        if text is None:
            return
        config = {**json.loads(text), "tensors_sha256": hashlib.sha256(payload).hexdigest()}
        write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
        found = read_bounded(folder / TENSOR_FILE, LARGEST_TENSORS)
        if found == payload:
            return
        payload = found


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


def holds_edits(folder: Path) -> bool:
    """Whether a folder has one of the files of saved edits."""
    return any((folder / name).is_file() for name in (TENSOR_FILE, CONFIG_FILE))


def read_pair(folder: Path) -> Pair:
    """The edits in a folder.

    Raises:
        HeadEditError: there are none, a file is damaged, or it says what edits cannot be.
    """
    file = folder / TENSOR_FILE
    if not holds_edits(folder):
        raise HeadEditError(f"{folder}: holds no {TENSOR_FILE}, so there are no saved edits here.")
    payload = _read_tensor_file(file) if file.is_file() else None
    try:
        text = None if payload is None else header_text(payload)
    except ValueError:
        text = None  # no safetensors file: the config next to it, if there is one, belongs to another
    if payload is None or text is None:
        return _read_older(folder, payload)
    where = f"{file}: the config in its header"
    try:
        config = read_json(text.encode()) if len(text) <= LARGEST_CONFIG else None
    except (ValueError, RecursionError) as error:
        raise HeadEditError(f"{where} cannot be read ({error}).") from None
    if config is None:
        raise HeadEditError(f"{where} has {len(text):,} bytes, more than the {LARGEST_CONFIG:,} that edits can have.")
    saved = _checked(config, {**_KINDS, "data_sha256": str}, where)
    if hashlib.sha256(split_payload(payload)[1]).hexdigest() != saved["data_sha256"]:
        raise HeadEditError(
            f"{file}: is damaged: its tensors do not have the hash in its header. Save the edits again."
        )
    _compare_copy(folder, saved)
    return Pair(saved, _tensors(payload, file), where)


def _read_older(folder: Path, payload: bytes | None) -> Pair:
    """A pair of files of which the config has the hash of the tensors."""
    file, tensor_file = folder / CONFIG_FILE, folder / TENSOR_FILE
    if not file.is_file():
        raise HeadEditError(
            f"{folder}: holds no {CONFIG_FILE}, and {TENSOR_FILE} has no config in its header, so that there are no "
            "saved edits here."
        )
    try:
        config = read_json(read_bounded(file, LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
    saved = _checked(config, {**_KINDS, "tensors_sha256": str}, str(file))
    if payload is None:
        payload = _read_tensor_file(tensor_file)
    if hashlib.sha256(payload).hexdigest() != saved["tensors_sha256"]:
        raise HeadEditError(
            f"{tensor_file}: does not belong to the {CONFIG_FILE} next to it (its hash differs): the file was damaged, "
            "or saving was interrupted. Save the edits again."
        )
    return Pair(saved, _tensors(payload, tensor_file), str(file))


def _compare_copy(folder: Path, saved: dict[str, Any]) -> None:
    """Warns where the readable copy is not that of the config in the header."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    try:
        copy = read_json(read_bounded(file, LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        copy, difference = None, f"it cannot be read: {error}"
    else:
        copy = copy if isinstance(copy, dict) else {}
        keys = [key for key in {**saved, **copy} if key != "tensors_sha256" and copy.get(key) != saved.get(key)]
        difference = "it differs in " + ", ".join(f"{key:.40}" for key in keys[:8])
        if not keys:
            return
    warn(
        f"{file}: is not the config of the {TENSOR_FILE} next to it ({difference}). The config in the header of "
        f"{TENSOR_FILE} counts, and the copy is ignored; saving the edits writes it again.",
        stacklevel=2,
    )


def _checked(config: object, kinds: dict[str, type], where: str) -> dict[str, Any]:
    saved = check_keys(config, kinds, where)
    if saved["format_version"] not in (FULL, HARDENED):
        versions = saved.get("versions")
        writer = versions.get("headedit") if isinstance(versions, dict) else None
        raise HeadEditError(
            f"{where}: format_version is {saved['format_version']}, this headedit reads {FULL} and {HARDENED}; "
            f"it was written by headedit {'of unknown version' if writer is None else writer}."
        )
    check_site_rows(saved["sites"], where)
    return saved


def _tensors(payload: bytes, file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(payload)
    except Exception as error:  # its own, a KeyError for a dtype that torch lacks, and torch's
        raise HeadEditError(f"{file}: is not a safetensors file ({error}).") from None


def _read_tensor_file(file: Path) -> bytes:
    try:
        return read_bounded(file, LARGEST_TENSORS)
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None


def read_bounded(file: Path, largest: int) -> bytes:
    """The content of a file.

    Raises:
        ValueError: it has more than ``largest`` bytes.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    if size > largest:
        raise ValueError(f"it has {size:,} bytes, more than the {largest:,} that edits can have")
    return file.read_bytes()
