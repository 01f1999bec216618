"""What a merge writes: W' = W·diag(1 + g_m·m) and b' = b + W·(g_a·a) of every site; the model is not touched.

With the edit of JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), z' = (1 + g_m·m) ⊙ z + g_a·a, the projection
gives W·z' + b = W'·z + b'. A gate in front of the site changes nothing: the edit acts on what the projection is given.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from headedit.edits.handle import HeadEdits
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.specs import HeadSite

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Folded:
    """The new weight of one site's module, and its new bias where the edit has an offset.

    Fields:
        site: the site.
        weight: in the shape and dtype of the module's.
        bias: [out]; None where the offset is zero, so that the bias stays as it is.
    """

    site: HeadSite
    weight: Tensor
    bias: Tensor | None

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(torch.isfinite(t).all()) for t in (self.weight, self.bias) if t is not None)


@torch.no_grad()
def fold(edits: HeadEdits) -> list[Folded]:
    """The weights and biases that hold the edits as they act in eval mode, a site each; nothing is written.

    Computed in float32, or in the weight's dtype where that is wider, and rounded once. A site whose edit changes
    nothing is left out.

    Raises:
        HeadEditError: a site's module cannot hold a scale in its weight; the message says why.
    """
    check_attached(edits)
    owners = weight_owners(edits.model)
    folded = []
    for site, edit in edits.module.pairs():
        scale, offset = acting(edit)
        if bool((scale == 1).all()) and not bool(offset.any()):
            continue
        reason = obstacle(edits.model, site, owners)
        if reason is not None:
            raise HeadEditError(f"{site.path} cannot be merged: {reason}")
        folded.append(_fold(site, scale, offset))
    return folded


@torch.no_grad()
def acting(edit: SiteEdit) -> tuple[Tensor, Tensor]:
    """Scale and offset of a site in eval mode, as they are applied, each [heads * head_dim], in float64."""
    scale, offset = edit.scale_and_offset()
    return scale.double(), offset.double()


def check_attached(edits: HeadEdits) -> None:
    """Raises a HeadEditError where the edits were detached, so that there is no model to fold them into."""
    if not edits.attached:
        raise HeadEditError("These edits are detached, so there is nothing to merge them into; load them again.")


def weight_owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of the modules that hold each parameter, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def obstacle(model: nn.Module, site: HeadSite, owners: dict[int, list[str]]) -> str | None:
    """Why a site's module cannot hold a scale in its weight, and what to do instead; None where it can."""
    module = site.module
    wrapped = hasattr(module, "base_layer") or any(
        m._modules.get("base_layer") is module for m in model.modules() if m is not module
    )
    if wrapped:
        return (
            "PEFT wraps the projection. Merge that first: model = peft_model.merge_and_unload(); then load the edits."
        )
    weight = module._parameters.get("weight")
    if getattr(model, "is_quantized", False) and (weight is None or weight.dtype not in _DTYPES):
        return _QUANTIZED.format(type(module).__name__)
    if weight is None or weight.dim() not in (1, 2, 3):
        return f"its class {type(module).__name__} has no plain weight. {_KEEP}"
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.dtype not in _DTYPES:
        return _QUANTIZED.format(f"{type(module).__name__}, {type(weight).__name__} of {weight.dtype}")
    if weight.is_meta:
        return (
            "its weight is offloaded or on the meta device. Load the model without offloading, on the CPU if need be."
        )
    shared = [name for name in owners.get(id(weight), []) if name != site.path]
    if shared:
        return f"its weight is shared with {', '.join(shared)}, which has another edit or none. {_KEEP}"
    if not _is_plain(module) and not _commutes(site, biased=module._parameters.get("bias") is not None):
        return (
            f"its class {type(module).__name__} is no linear map of the heads (a norm, or experts), so a scale of its "
            f"input is not one of its weight. {_KEEP}"
        )
    return None


_KEEP = "Keep the edits beside the model: save_pretrained, and headedit.load on the base model."
_QUANTIZED = (
    "its weight is quantized ({}). Load the base model in full precision, load the edits on it and merge there, "
    "then quantize the result."
)


def takes_bias(site: HeadSite) -> bool:
    """Whether a site's module has a bias, or would add one that it were given."""
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
    new_weight, new_bias = _new_tensors(matrix, bias, scale, offset, conv=False)
    shape = (3, 2, site.width) if groups == 1 else (3, 2, groups, weight.shape[1])
    try:
        wanted = _call(module, matrix, bias, edited.view(shape))
        found = _call(module, new_weight, new_bias if biased else None, z.view(shape))
    except Exception:  # whatever a class of another kind raises when it is given a projection's input
        return False
    return bool(torch.allclose(wanted, found, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())))


def _call(module: nn.Module, weight: Tensor, bias: Tensor | None, z: Tensor) -> Tensor:
    """What the module's class gives for other tensors, without hooks."""
    twin = copy.copy(module)
    twin._parameters = dict.fromkeys(module._parameters)
    twin._parameters["weight"] = nn.Parameter(weight)
    twin._parameters["bias"] = None if bias is None else nn.Parameter(bias)
    result: Tensor = type(module).forward(twin, z)
    return result


def _fold(site: HeadSite, scale: Tensor, offset: Tensor) -> Folded:
    weight, bias = site.module._parameters["weight"], site.module._parameters.get("bias")
    assert weight is not None
    new_weight, new_bias = _new_tensors(
        weight.data, None if bias is None else bias.data, scale, offset, conv=isinstance(site.module, Conv1D)
    )
    return Folded(site, new_weight, new_bias)


def _new_tensors(
    weight: Tensor, bias: Tensor | None, scale: Tensor, offset: Tensor, *, conv: bool
) -> tuple[Tensor, Tensor | None]:
    """W' in the layout of W, [out, in], [in, out] of a Conv1D or [groups * out, in] of grouped heads, and b'."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale, offset = scale.to(weight.device, wide), offset.to(weight.device, wide)
    matrix = weight.to(wide).T if conv else weight.to(wide)  # [out, in]
    groups = scale.numel() // matrix.shape[1]
    blocks = matrix.view(groups, -1, matrix.shape[1]) if groups > 1 else matrix.unsqueeze(0)
    new = (blocks * scale.view(groups, 1, -1)).reshape(matrix.shape)
    new_weight = (new.T if conv else new).to(weight.dtype).contiguous()
    if not bool(offset.any()):
        return new_weight, None
    image = torch.stack([functional.linear(o, b) for o, b in zip(offset.view(groups, -1), blocks, strict=True)])
    new_bias = image.flatten() if bias is None else image.flatten() + bias.to(wide)
    return new_weight, new_bias.to(weight.dtype if bias is None else bias.dtype)
