"""Edits written as a control vector in GGUF, which llama.cpp adds to the output of each layer (``--control-vector``).

An offset o at the input of a projection W adds W·o to the projection's output, for every token. llama.cpp adds its
vector once the whole layer is done. Both are the same where the projection's output goes into the residual stream as it
is and nothing in the layer reads it from there: where attention and MLP stand side by side (GPT-NeoX, Falcon, Phi,
Cohere), and at the last projection of a layer. In most types, Llama among them, the layer's MLP reads what attention
has written, so that a control vector is another function; by how much is measured on the model.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headedit.edits.adapter_set import AdapterSet
from headedit.edits.files.values import check_effective
from headedit.edits.merge.fold import check_attached, wide_scale_and_offset
from headedit.edits.merge.projection import merged_tensors, weight_owners, why_not_mergeable
from headedit.edits.positions import check_everywhere
from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.hf.layers import stack_of
from headedit.hf.modes import evaluating
from headedit.io.describe import first_names
from headedit.io.files import write_atomically
from headedit.io.optional import import_optional
from headedit.specs import HeadSite

_ARCHITECTURE = "controlvector"
_TOKENS = 24
_EXACT = 1e-4
_ROUNDING = 64
_MERGE = (
    "Merge the edits (headedit merge MODEL EDITS OUT) and make a GGUF file of that checkpoint with llama.cpp's "
    "convert_hf_to_gguf.py."
)


@torch.no_grad()
def to_control_vector(edits: AdapterSet, path: "str | PathLike[str]", *, approximate: bool = False) -> float:
    """Writes the offsets of the active adapter as a control vector of llama.cpp.

    Args:
        edits: the adapter set of a model in float32; not merged.
        path: the GGUF file; its folder is made if it does not exist.
        approximate: write it also where it is not the same function as the edits.

    Returns:
        The largest difference between a logit of the edited model and of one with the vectors, as a share of the
        largest change that the edits make to a logit, on random tokens; 0 where that is not more than rounding.

    Raises:
        HeadEditError: the package gguf is not installed; the edits have a scale, act on some tokens alone, or are at
            the first layer, where llama.cpp has no vector; a value is NaN or infinite; a weight cannot be read; the
            model is not in float32; the vectors would be another function, and ``approximate`` is False; or the file
            cannot be written.
    """
    check_attached(edits)
    if edits.merged is not None:
        raise HeadEditError("These edits are merged; call unmerge_adapter() first, as the base model must be plain.")
    edits.refuse_contexts("they cannot be a control vector")
    check_everywhere(edits.module.config.positions, "they cannot be a control vector")
    gguf = import_optional("gguf", "Writing a control vector")
    check_effective(edits.module)
    offsets = _offsets(edits)
    share = _difference(edits, offsets)
    if share and not approximate:
        raise HeadEditError(
            "llama.cpp adds a control vector to the output of a whole layer, and in a "
            f"{type(edits.model).__name__} the same layer reads an offset before that: the logits would be off by "
            f"{share:.1%} of what the edits change. {_MERGE} Or accept the difference: approximate=True, and "
            "--approximate on the command line."
        )
    _write(gguf, edits.model, offsets, Path(path))
    return share


@dataclass(frozen=True)
class _Offset:
    """An offset of a site, [in], and what its projection makes of it, W·o, [out], which is added after a layer."""

    site: HeadSite
    layer: str
    offset: Tensor
    image: Tensor


def _offsets(edits: AdapterSet) -> list[_Offset]:
    """The offsets of all sites that have one.

    Raises:
        HeadEditError: a scale, an edit of the first layer, or a weight that cannot be read.
    """
    rows = [(site, *wide_scale_and_offset(edit)) for site, edit in edits.module.pairs()]
    scaled = [site.path for site, scale, _ in rows if bool((scale != 1).any())]
    if scaled:
        raise HeadEditError(
            f"The edits of {first_names(scaled)} have a scale, and a control vector only adds. {_MERGE} Or learn edits "
            "without a scale, EditConfig(vectors='offset')."
        )
    rows = [row for row in rows if bool(row[2].any())]
    first = [site.path for site, _, _ in rows if site.layer == 0]
    if first:
        raise HeadEditError(
            f"The edits of {first_names(first)} are at the first layer, where llama.cpp has no control vector. "
            f"{_MERGE} Or learn edits of the other layers, EditConfig(layers='1:')."
        )
    owners = weight_owners(edits.model)
    found = []
    for site, scale, offset in rows:
        reason = why_not_mergeable(edits.model, site, owners)
        if reason is not None:
            raise HeadEditError(f"{site.path} cannot be a control vector: {reason}")
        image = _image(site.module, scale, offset)
        found.append(_Offset(site, _layer_of(edits.model, site), offset.float(), image))
    return found


def _layer_of(model: nn.Module, site: HeadSite) -> str:
    stack = stack_of(model, site.path)
    if stack is None:
        raise HeadEditError(f"{site.path} is in no stack of layers, so it cannot be a control vector. {_MERGE}")
    return f"{stack}.{site.layer}"


def _image(module: nn.Module, scale: Tensor, offset: Tensor) -> Tensor:
    """W·o in float32, [out]."""
    weight = module._parameters["weight"]
    assert weight is not None
    _, image = merged_tensors(weight.float(), None, scale, offset, conv=isinstance(module, Conv1D))
    assert image is not None
    return image


def _difference(edits: AdapterSet, offsets: list[_Offset]) -> float:
    """The return value of ``to_control_vector``.

    Offsets that are small next to the hidden states could hide a difference in rounding, so they are compared as large
    as the hidden states too.
    """
    model: Any = edits.model
    if not offsets:
        return 0.0
    if model.dtype not in (torch.float32, torch.float64):
        raise HeadEditError(
            f"This {type(model).__name__} is in {str(model.dtype).removeprefix('torch.')}, whose rounding hides "
            "whether a control vector is the same function as the edits. Load it with dtype='float32'."
        )
    length = min(_TOKENS, getattr(text_config(model), "max_position_embeddings", _TOKENS))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(text_config(model).vocab_size, (2, length), generator=generator).to(model.device)
    hidden: list[float] = []
    with edits.disable_adapter():
        watches = [(model.get_submodule(new.layer), _measures(hidden, new)) for new in offsets]
        base = _logits(model, ids, watches)
        largest = max(float(new.image.abs().max()) for new in offsets)
        strong = max(hidden) / largest if largest else 1.0
        exact, share = _compare(model, ids, base, offsets, 1.0)
        exact = _compare(model, ids, base, offsets, max(strong, 1.0))[0] and exact
    return 0.0 if exact else share


def _compare(model: Any, ids: Tensor, base: Tensor, offsets: list[_Offset], factor: float) -> tuple[bool, float]:
    """Whether offsets before projections give the logits of vectors after layers, and how far the logits are apart.

    The largest difference is a share of the largest change of a logit; ``factor`` is on offsets and vectors.
    """
    before = [(new.site.module, _adds_before(factor * new.offset)) for new in offsets]
    after = [(model.get_submodule(new.layer), _adds_after(factor * new.image)) for new in offsets]
    wanted, found = _logits(model, ids, before, pre=True), _logits(model, ids, after)
    rounding = _ROUNDING * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    off, change = float((found - wanted).abs().max()), float((wanted - base).abs().max())
    return off <= _EXACT * change + rounding, off / max(change, rounding)


def _measures(hidden: list[float], new: _Offset) -> Callable[..., None]:
    """A forward hook that notes how large the hidden states are that a layer returns.

    Raises:
        HeadEditError: it returns something else, so that no vector can be added to it.
    """

    def hook(module: nn.Module, args: object, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if not isinstance(states, Tensor) or states.shape[-1] != len(new.image):
            raise HeadEditError(
                f"{new.layer}, a {type(module).__name__}, does not return hidden states of width {len(new.image)}, so "
                f"a control vector cannot be added to them. {_MERGE}"
            )
        hidden.append(float(states.abs().max()))

    return hook


def _adds_before(vector: Tensor) -> Callable[..., Any]:
    """A forward pre-hook that adds a vector to the first argument."""
    return lambda module, args: (args[0] + vector.to(args[0].device, args[0].dtype), *args[1:])


def _adds_after(vector: Tensor) -> Callable[..., Any]:
    """A forward hook that adds a vector to the hidden states that a layer returns."""

    def hook(module: nn.Module, args: object, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states = states + vector.to(states.device, states.dtype)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return hook


def _logits(
    model: Any, ids: Tensor, hooks: Sequence[tuple[nn.Module, Callable[..., Any]]], pre: bool = False
) -> Tensor:
    """Logits in float32, with hooks on some modules."""
    handles = [m.register_forward_pre_hook(h) if pre else m.register_forward_hook(h) for m, h in hooks]
    try:
        with evaluating(model):
            result: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        for handle in handles:
            handle.remove()
    return result


def _write(gguf: Any, model: Any, offsets: list[_Offset], path: Path) -> None:
    vectors: dict[int, Tensor] = {}
    for new in offsets:
        image = new.image.float().cpu()
        vectors[new.site.layer] = vectors[new.site.layer] + image if new.site.layer in vectors else image
    vectors = vectors or {1: torch.zeros(text_config(model).hidden_size)}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vector.gguf"
        writer = gguf.GGUFWriter(str(file), _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", str(text_config(model).model_type))
        writer.add_int32(f"{_ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        payload = file.read_bytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, payload)
    except OSError as error:
        raise HeadEditError(f"{path}: the control vector cannot be written ({error.strerror}).") from None
