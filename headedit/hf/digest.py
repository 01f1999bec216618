"""A digest of a model: of its weights, the same on every device, and of the settings that its figures depend on.

Every parameter and every buffer that is saved is read once, quantized ones with their scales and offloaded ones where
they are kept, so the digest costs about as much as one forward pass. The bits of each row are added up as whole
numbers, which is exact on every device, and some elements of each tensor are taken as they are.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from headedit.hf.compiled import uncompiled, uncompiled_path

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 2**24  # elements, so that no large copy is made
_TAKEN = 64
_INCIDENTAL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
_LIST = ("active_adapters", "merged_adapters")


def digest_of(data: Any) -> str:
    """A short digest of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


@torch.no_grad()
def weights_digest(model: nn.Module, without: Collection[nn.Module] = ()) -> str:
    """A digest of the weights: of names, dtypes, shapes and values, and of which adapters of PEFT act.

    Args:
        model: a model in any dtype, quantized, offloaded or spread over devices.
        without: modules whose own parameters are left out.
    """
    left_out = set(without)
    found = hashlib.sha256()
    for path, module in model.named_modules():
        if module in left_out:
            continue
        path = uncompiled_path(path)
        for name, tensor in _tensors(module):
            found.update(f"{path}.{name}".encode())
            for part in tensor_bytes(tensor):
                found.update(part)
        found.update(_adapters(path, module).encode())
    return found.hexdigest()[:16]


def settings_digest(model: nn.Module) -> str:
    """A digest of the class of a model, its config and its settings of generation, without paths and versions."""
    config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    parts = [type(uncompiled(model)).__name__]
    for found in (config, generation):
        as_data: Any = getattr(found, "to_dict", dict)
        parts.append(_without(as_data(), (*_INCIDENTAL, "pad_token_id", "_from_model_config")))
    return digest_of(parts)


def tensor_bytes(tensor: Tensor) -> Iterator[bytes]:
    """Bytes that differ when a tensor does: dtype, shape, the sum of the bits of each row, and some elements."""
    if hasattr(tensor, "__tensor_flatten__"):  # a tensor made of others, as torchao's and DTensor are
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from tensor_bytes(getattr(tensor, name))
        return
    tensor = tensor.detach()
    yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    if tensor.is_meta or not tensor.numel():
        return
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1).contiguous()
    together = flat.shape[1] * flat.element_size() % 8 == 0  # as many bits at once as a whole number has
    bits = flat.view(torch.int64 if together else _WHOLE[flat.element_size()])
    rows = max(1, _AT_ONCE // bits.shape[1])
    sums = [part.sum(1, dtype=torch.int64).cpu() for part in torch.split(bits, rows)]
    yield torch.cat(sums).numpy().tobytes()
    places = torch.linspace(0, bits.numel() - 1, min(_TAKEN, bits.numel()), dtype=torch.float64).long()
    yield bits.view(-1)[places.to(bits.device)].cpu().numpy().tobytes()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and saved buffers of a module itself, and what a quantized weight keeps next to its own bits."""
    saved = {name: b for name, b in module._buffers.items() if name not in module._non_persistent_buffers_set}
    meta: Any = getattr(module, "meta", None) if "W_q" in module._parameters else None
    if isinstance(meta, dict):  # HQQ's scales and zeros
        saved |= {f"meta.{key}": value for key, value in sorted(meta.items()) if isinstance(value, Tensor)}
    for name, tensor in {**module._parameters, **saved}.items():
        if tensor is None:
            continue
        yield name, _fetched(module, name, tensor)
        state = getattr(tensor, "quant_state", None)  # 4 bits, by bitsandbytes
        for label, part in (("", state), ("state2.", getattr(state, "state2", None))):
            for key, value in sorted(vars(part).items()) if part is not None else ():
                if isinstance(value, Tensor):
                    yield f"{name}.{label}{key}", value
        scales = (getattr(tensor, "SCB", None), getattr(getattr(module, "state", None), "SCB", None))  # 8 bits
        for value in scales:
            if isinstance(value, Tensor):
                yield f"{name}.SCB", value
                break


def _fetched(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, also where accelerate keeps it in memory or on disk until the module runs."""
    if not tensor.is_meta:
        return tensor
    hooks = [getattr(module, "_hf_hook", None)]
    hooks += getattr(hooks[0], "hooks", ())
    for hook in hooks:
        kept = getattr(hook, "weights_map", None)
        if kept is not None and name in kept:
            found: Tensor = kept[name]
            return found
    return tensor


def _adapters(path: str, module: nn.Module) -> str:
    """Which adapters of PEFT act in a layer, and how strongly; empty in any other module."""
    if not hasattr(module, "merged_adapters") or not hasattr(module, "disable_adapters"):
        return ""
    lists = {name: list(getattr(module, name, ())) for name in _LIST}
    scaling = getattr(module, "scaling", None)
    return f"{path}{lists}{module.disable_adapters}{scaling if isinstance(scaling, dict) else ''}"


def _without(data: Any, keys: Collection[str]) -> Any:
    if isinstance(data, dict):
        return {str(key): _without(value, keys) for key, value in data.items() if key not in keys}
    return [_without(item, keys) for item in data] if isinstance(data, list | tuple) else data
