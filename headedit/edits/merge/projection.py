"""The module whose input is a site: whether it can hold a merge in its weight, and the weight and bias it gets."""

import copy

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from headedit.hf.quantized import full_precision, quantization_of
from headedit.hf.sharding import is_sharded
from headedit.specs import HeadSite

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_KEEP = "Keep the edits next to the model: save_pretrained, and headedit.load on the base model."
_QUANTIZED = "its weight is quantized ({}). {}, load the edits on it and merge there, then quantize the result."


def weight_owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of the modules that hold each parameter, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def why_not_mergeable(model: nn.Module, site: HeadSite, owners: dict[int, list[str]]) -> str | None:
    """The reason why a site's module cannot hold a scale in its weight, with the way out; None where it can."""
    module = site.module
    wrapped = hasattr(module, "base_layer") or any(
        m._modules.get("base_layer") is module for m in model.modules() if m is not module
    )
    if wrapped:
        return (
            "PEFT wraps the projection. Merge that first: model = peft_model.merge_and_unload(); then load the edits."
        )
    weight = module._parameters.get("weight")
    if is_sharded(weight):
        return (
            "its weight is sharded over processes. Save the edits with save_pretrained, load base model and edits in "
            "one process, and merge there."
        )
    how = quantization_of(module)
    if how is not None:
        return _QUANTIZED.format(f"{type(module).__name__}, {how}", full_precision(module))
    if getattr(model, "is_quantized", False) and (weight is None or weight.dtype not in _DTYPES):
        return _QUANTIZED.format(type(module).__name__, full_precision(module))
    if weight is None or weight.dim() not in (1, 2, 3):
        return f"its class {type(module).__name__} has no plain weight. {_KEEP}"
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.dtype not in _DTYPES:
        kind = f"{type(module).__name__}, {type(weight).__name__} of {weight.dtype}"
        return _QUANTIZED.format(kind, full_precision(module))
    if weight.is_meta:
        return (
            "its weight is offloaded or on the meta device. Load the model without offloading, on the CPU if need be."
        )
    shared = [name for name in owners.get(id(weight), []) if name != site.path]
    if shared:
        return f"its weight is shared with {', '.join(shared)}, which has another edit or none. {_KEEP}"
    if not _is_plain(module) and not _commutes(site, biased=module._parameters.get("bias") is not None):
        return (
            f"its class {type(module).__name__} is not a linear map of the heads (it is a norm, or experts), so a "
            f"scale of its input is not a scale of its weight. {_KEEP}"
        )
    return None


def takes_bias(site: HeadSite) -> bool:
    """Whether a site's module has a bias, or could be given one."""
    module = site.module
    return module._parameters.get("bias") is not None or _is_plain(module) or _commutes(site, biased=True)


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


@torch.no_grad()
def _commutes(site: HeadSite, *, biased: bool) -> bool:
    """Whether a module of another class gives the same, merged, as on edited input; tried on random numbers."""
    module, weight = site.module, site.module._parameters["weight"]
    if weight is None or weight.dim() != 2 or site.width % weight.shape[1]:
        return False
    generator = torch.Generator().manual_seed(0)
    groups = site.width // weight.shape[1]
    z = torch.randn(3, 2, site.width, generator=generator)
    scale, offset = (torch.randn(site.width, generator=generator).double() for _ in range(2))
    matrix = torch.randn(weight.shape, generator=generator)
    bias = torch.randn(weight.shape[0], generator=generator) if biased else None
    edited = torch.addcmul(offset.float() if biased else torch.zeros(()), z, scale.float())
    new_weight, new_bias = merged_tensors(matrix, bias, scale, offset, conv=False)
    shape = (3, 2, site.width) if groups == 1 else (3, 2, groups, weight.shape[1])
    try:
        wanted = _call(module, matrix, bias, edited.view(shape))
        found = _call(module, new_weight, new_bias if biased else None, z.view(shape))
    except Exception:  # whatever a class of another kind raises when it is given a projection's input
        return False
    return bool(torch.allclose(wanted, found, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())))


def _call(module: nn.Module, weight: Tensor, bias: Tensor | None, z: Tensor) -> Tensor:
    """The output of the module's class with other tensors, without hooks."""
    twin = copy.copy(module)
    twin._parameters = dict.fromkeys(module._parameters)
    twin._parameters["weight"] = nn.Parameter(weight)
    twin._parameters["bias"] = None if bias is None else nn.Parameter(bias)
    result: Tensor = type(module).forward(twin, z)
    return result


def merged_tensors(
    weight: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor, *, conv: bool
) -> tuple[Tensor, Tensor | None]:
    """The merged weight W' and bias b' of a projection; b' is None where the offset is zero.

    Args:
        weight: W, [out, in], [in, out] of a Conv1D, or [groups * out, in] of grouped heads.
        bias: b, [out]; None where there is none.
        scale: the factor on the input, [groups * in].
        offset: the offset added to the input, [groups * in].
        conv: whether the weight is that of a Conv1D.

    Returns:
        In the layouts and dtypes of weight and bias; computed in float32 or wider and rounded once.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale, offset = scale.to(weight.device, wide), offset.to(weight.device, wide)
    matrix = weight.to(wide).T if conv else weight.to(wide)  # [out, in]
    groups = scale.numel() // matrix.shape[1]
    blocks = rearrange(matrix, "(groups out) width -> groups out width", groups=groups)
    scales = rearrange(scale, "(groups width) -> groups 1 width", groups=groups)
    new = rearrange(blocks * scales, "groups out width -> (groups out) width")
    new_weight = (new.T if conv else new).to(weight.dtype).contiguous()
    if not bool(offset.any()):
        return new_weight, None
    offsets = rearrange(offset, "(groups width) -> groups width", groups=groups)
    image = torch.cat([functional.linear(o, block) for o, block in zip(offsets, blocks, strict=True)])
    new_bias = image if bias is None else image + bias.to(wide)
    return new_weight, new_bias.to(weight.dtype if bias is None else bias.dtype)
