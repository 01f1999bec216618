"""Files that other projects wrote, read for the tensors in them and nothing else: no code in them is run."""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from headedit.errors import HeadEditError

_STATE_OF_A_RUN = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""What the names of files begin with that a Trainer writes next to the weights."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys below which a file may hold the tensors by name, instead of at its top."""

_KEY = re.compile(r"(?:.*\.)?layers\.(\d{1,6})\.self_attn\.(attn_A|attn_v|log_g1|log_g2)(?:\.(\d{1,6}))?")

Parts = dict[int | None, Tensor]
"""One array of a layer: whole, by None, or a tensor for each head, by its index."""


def read_layers(path: Path, needed: tuple[str, ...]) -> dict[int, dict[str, Parts]]:
    """The tensors ``attn_A``, ``attn_v``, ``log_g1`` and ``log_g2`` of each layer's ``self_attn`` in a checkpoint.

    Args:
        path: a folder with safetensors, ``.bin`` or ``.pt`` files, or one such file.
        needed: those that every layer must have.

    Raises:
        HeadEditError: a file cannot be read, none of these is there, one needed is missing, or one is there twice.
    """
    found: dict[int, dict[str, Parts]] = {}
    for name, tensor in each_tensor(path, is_edit):
        match = _KEY.fullmatch(name)
        assert match is not None
        parts = found.setdefault(int(match[1]), {}).setdefault(match[2], {})
        head = None if match[3] is None else int(match[3])
        if head in parts:
            raise HeadEditError(f"{path}: the tensor '{name}' is in the checkpoint twice.")
        parts[head] = tensor
    if not found:
        raise HeadEditError(
            f"{path}: holds no edits: no tensor is named like model.layers.0.self_attn.{needed[0]}. Give the folder of "
            "a checkpoint that the released code saved."
        )
    for layer, parts_of in sorted(found.items()):
        for key in needed:
            if key not in parts_of:
                raise HeadEditError(f"{path}: layer {layer} has no {key}, only {', '.join(sorted(parts_of))}.")
    return found


def read_lofit(paths: "Sequence[str | PathLike[str]]") -> tuple[Tensor, Tensor, Tensor | None]:
    """Heads [K, 2], offsets and scales [K, head_dim] for ``import_lofit``, from files.

    Args:
        paths: ``.npy`` files of heads, offsets and perhaps scales, in this order; or one safetensors file with tensors
            of these names; or one checkpoint that LoFiT's code saved, of which the heads are taken whose v or A is not
            zero.

    Raises:
        HeadEditError: a file cannot be read or holds something else.
    """
    files = [Path(path) for path in paths]
    if len(files) in (2, 3):
        arrays = [torch.tensor(_read_npy(file)) for file in files]
        return arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None
    if len(files) != 1:
        raise HeadEditError(f"Found {len(files)} files, expected .npy files of heads, offsets and perhaps scales.")
    if files[0].suffix == ".safetensors":
        named = _read(files[0], lambda name: name in ("heads", "offsets", "scales"))
        if {"heads", "offsets"} <= named.keys():
            return named["heads"], named["offsets"], named.get("scales")
    heads, offsets, scales = [], [], []
    for layer, parts in sorted(read_layers(files[0], ("attn_v",)).items()):
        v = stacked(parts["attn_v"], (-1, -1), f"{files[0]}: layer {layer}: attn_v")
        a = torch.zeros_like(v)
        if "attn_A" in parts:
            a = stacked(parts["attn_A"], tuple(v.shape), f"{files[0]}: layer {layer}: attn_A")
        chosen = (v.any(1) | a.any(1)).nonzero().flatten()
        heads += [(layer, int(head)) for head in chosen]
        offsets.append(v[chosen])
        scales.append(a[chosen])
    if not heads:
        raise HeadEditError(f"{files[0]}: every attn_v and attn_A is zero, so there is nothing to import.")
    if len({rows.shape[1] for rows in offsets}) > 1:
        raise HeadEditError(f"{files[0]}: the heads of its layers have several widths.")
    scale = torch.cat(scales)
    return torch.tensor(heads), torch.cat(offsets), scale if scale.any() else None


def read_heads(path: "str | PathLike[str]") -> list[list[int]]:
    """The layer and the head in each row of an ``.npy`` file, [K, 2], as LoFiT's code saves its chosen heads.

    Raises:
        HeadEditError: the file cannot be read or holds something else.
    """
    array = _read_npy(Path(path))
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise HeadEditError(
            f"{path}: found {array.dtype} of shape {array.shape}, expected whole numbers of shape (K, 2), a layer and "
            "a head in each row."
        )
    found: list[list[int]] = array.tolist()
    return found


def stacked(parts: Parts, shape: tuple[int, ...], where: str) -> Tensor:
    """One array in single precision, from the whole or from one tensor per head; [heads, 1] counts as [heads].

    Args:
        parts: what was found.
        shape: the shape it must have, -1 for any size.
        where: the file, layer and name, for messages.

    Raises:
        HeadEditError: heads are missing, the shape is another, or a number is not finite.
    """
    if None in parts and len(parts) > 1:
        raise HeadEditError(f"{where}: is there both as a whole and by heads.")
    if None in parts:
        values = parts[None]
    else:
        if sorted(head for head in parts if head is not None) != list(range(len(parts))):
            raise HeadEditError(f"{where}: found {len(parts)} heads, but not 0 to {len(parts) - 1}.")
        each = [parts[head] for head in range(len(parts))]
        if len({(tensor.shape, tensor.dtype) for tensor in each}) > 1:
            raise HeadEditError(f"{where}: the heads have several shapes or dtypes.")
        values = torch.stack(each)
    if len(shape) == 1 and values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return checked(values, shape, where)


def checked(values: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    """The numbers in single precision, or a HeadEditError where they have another shape or are not finite."""
    fits = values.dim() == len(shape) and all(b in (-1, a) for a, b in zip(values.shape, shape, strict=True))
    if not fits or not values.is_floating_point():
        wanted = str(shape).replace("-1", "any")
        raise HeadEditError(f"{where}: found {described(values)}, expected floating-point numbers of shape {wanted}.")
    values = values.to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        raise HeadEditError(f"{where}: holds NaN or infinity.")
    return values


def described(values: Tensor) -> str:
    """Dtype and shape, for messages."""
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"


def is_edit(name: str) -> bool:
    """Whether a tensor of a checkpoint is a part of the edits by its name."""
    return _KEY.fullmatch(name) is not None


def each_tensor(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint whose names are wanted, with their names; of safetensors one at a time is in memory.

    Args:
        path: a folder with safetensors, ``.bin`` or ``.pt`` files, perhaps in several parts, or one such file.
        wanted: says of a name whether its tensor is wanted.

    Raises:
        HeadEditError: a file cannot be read, or holds something else than tensors under such a name.
    """
    for file in _files(path):
        yield from _each(file, wanted)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for patterns in (("*.safetensors",), ("pytorch_model*.bin",), ("*.bin", "*.pt", "*.pth")):
        files = sorted(file for pattern in patterns for file in path.glob(pattern))
        files = [file for file in files if not file.name.startswith(_STATE_OF_A_RUN)]
        if files:
            return files
    raise HeadEditError(f"{path}: holds neither *.safetensors nor pytorch_model*.bin, *.bin, *.pt or *.pth.")


def _read(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors in a file whose names are wanted."""
    return dict(_each(file, wanted))


def _each(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a file whose names are wanted, one after the other."""
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt") as opened:
                for name in filter(wanted, opened.keys()):
                    yield name, opened.get_tensor(name)
            return
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # safetensors', torch's and the system's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise HeadEditError(f"{file}: no tensors can be read from it ({reason[0]}).") from None
    if not isinstance(content, dict):
        raise HeadEditError(f"{file}: holds a {type(content).__name__}, expected tensors by name.")
    content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    for name, value in content.items():
        if not isinstance(name, str) or not wanted(name):
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise HeadEditError(f"{file}: '{name}' is a {type(value).__name__}, expected a dense tensor.")
        yield name, value


def _read_npy(file: Path) -> NDArray[Any]:
    try:
        array = numpy.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's for a file that is not an array, and the system's
        raise HeadEditError(f"{file}: no array can be read from it ({error}).") from None
    if not isinstance(array, numpy.ndarray) or array.dtype.kind not in "iuf":
        raise HeadEditError(f"{file}: expected one array of numbers, as numpy.save writes it.")
    native = array.astype(array.dtype.newbyteorder("="))
    return native.astype(numpy.int64) if native.dtype.kind in "iu" else native.astype(numpy.float32)
