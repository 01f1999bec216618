"""The two files of saved edits, read and written so that a half-written pair is never used.

Each is written next to its place and moved in, tensors first; the config holds the hash of the tensors, so a
pair that does not belong together is refused. A file may come from anyone: nothing in it is run, and its sizes,
numbers and names are checked before anything is made of them.

``headedit_config.json``: format_version; versions (headedit, torch, transformers); base_model (name_or_path, revision,
model_type, class, shape); spec and spec_sha256; config, the fields of ``EditConfig``; strength; sites, a row each
(layer, layers, kind, name, heads, head_dim); tensors_sha256.

``headedit.safetensors``, by format_version:

1. full: for each site ``{name}.offset`` and ``{name}.scale``, [heads, head_dim], and their gate logits
   ``{name}.offset_gate`` and ``{name}.scale_gate``, [heads]; those that the config leaves out are not there.
2. hardened: only open heads. For each vector of a site that has an open gate ``{name}.offset``, [open heads, head_dim],
   strength · gate · vector, and ``{name}.offset_heads``, [open heads], the rising indices of the heads; ``scale``
   likewise.

A file names the lowest version that can read it.
"""

import hashlib
import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.specs.schema import SITE_KINDS

CONFIG_FILE = "headedit_config.json"
TENSOR_FILE = "headedit.safetensors"
FULL, HARDENED = 1, 2
"""The values of ``format_version``: every head with its gates, or open heads alone."""

SITE_KEYS = ("layer", "layers", "kind", "name", "heads", "head_dim")
_LARGEST_CONFIG = 2**22  # bytes
_LARGEST_TENSORS = 2**30  # bytes; the full edits of a 70B model have 10 MB
_MOST_NUMBERS = 2**26  # in one vector of all sites; a 70B model has 2**19
_DEEPEST = 20


def write_pair(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], version: int = FULL) -> None:
    """Writes both files of saved edits.

    Raises:
        HeadEditError: the folder cannot be made or written.
    """
    payload = safetensors.torch.save(tensors, metadata={"format": "headedit"})
    config = {"format_version": version, **config, "tensors_sha256": hashlib.sha256(payload).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TENSOR_FILE, payload)
        write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise HeadEditError(
            f"{folder}: the edits cannot be written ({error.strerror}). Choose a folder that can be written."
        ) from None


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


def read_edits_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config file, with the keys and types that the format has.

    Raises:
        HeadEditError: there is none, it is damaged, or it says what edits cannot be.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise HeadEditError(f"{folder}: holds no {CONFIG_FILE}, so there are no saved edits here.")
    try:
        saved = _read_json(_read(file, _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
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
        if not isinstance(saved, dict) or type(saved.get(key)) is not kind:
            raise HeadEditError(f"{file}: the key '{key}' is missing or not a {kind.__name__}; the file is damaged.")
    assert isinstance(saved, dict)
    if saved["format_version"] not in (FULL, HARDENED):
        versions = saved.get("versions")
        writer = versions.get("headedit") if isinstance(versions, dict) else None
        raise HeadEditError(
            f"{file}: format_version is {saved['format_version']}, this headedit reads {FULL} and {HARDENED}; "
            f"it was written by headedit {'of unknown version' if writer is None else writer}."
        )
    _check_sites(saved["sites"], str(file))
    return saved


def read_tensors(folder: Path, saved: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors next to a config; they must be those that the config was written with."""
    file = folder / TENSOR_FILE
    try:
        payload = _read(file, _LARGEST_TENSORS)
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
    if hashlib.sha256(payload).hexdigest() != saved["tensors_sha256"]:
        raise HeadEditError(
            f"{file}: does not belong to the {CONFIG_FILE} next to it (its hash differs): the file was damaged, "
            "or saving was interrupted. Save the edits again."
        )
    try:
        return safetensors.torch.load(payload)
    except Exception as error:  # its own, a KeyError for a dtype that torch lacks, and torch's
        raise HeadEditError(f"{file}: is not a safetensors file ({error}).") from None


def _read(file: Path, largest: int) -> bytes:
    size = file.stat().st_size
    if size > largest:
        raise ValueError(f"it has {size:,} bytes, more than the {largest:,} that edits can have")
    return file.read_bytes()


def _read_json(payload: bytes) -> object:
    """Strict JSON: no key twice, no NaN, infinity or number that no field can hold, not nested without end."""
    content = json.loads(
        payload.decode(), object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_finite
    )
    if _is_deeper(content, _DEEPEST):
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    json.dumps(content, ensure_ascii=False).encode()  # a ValueError for half a surrogate pair, which cannot be printed
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return dict(pairs)


def _whole(text: str) -> int:
    if len(text) > 18:
        raise ValueError(f"the number {text[:18]}… is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:18]} is not finite")
    return value


def _is_deeper(content: object, levels: int) -> bool:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _check_sites(rows: list[Any], where: str) -> None:
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(SITE_KEYS):
            raise HeadEditError(f"{where}: sites: found {row!r:.80}, expected the keys {', '.join(SITE_KEYS)}.")
        numbers = [row[key] for key in ("layer", "layers", "heads", "head_dim")]
        texts = isinstance(row["name"], str) and row["name"] and row["kind"] in SITE_KINDS
        if not (
            texts and all(type(n) is int for n in numbers) and 0 <= numbers[0] < numbers[1] and min(numbers[2:]) > 0
        ):
            raise HeadEditError(f"{where}: sites: found {row!r:.200}, which cannot be a site.")
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names) or not names:
        raise HeadEditError(f"{where}: sites: {'one is named twice' if names else 'there is none'}.")
    numbers = sum(row["heads"] * row["head_dim"] for row in rows)
    cells = max(row["layers"] for row in rows) * sum(row["heads"] for row in rows)
    if max(numbers, cells) > _MOST_NUMBERS:
        raise HeadEditError(f"{where}: sites: they have {max(numbers, cells):,} numbers, more than edits can have.")
