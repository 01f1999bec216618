"""A model without weights as one of several devices has it under the tensor parallel plan of transformers.

Weights are cut as the plan says, and where the devices would talk, tensors of the size that they then have are made.
"""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.config import text_config

_BY_OUTPUTS = ("colwise", "colwise_gather_output", "colwise_rep", "packed_colwise", "embedding_rowwise")
_BY_INPUTS = ("rowwise", "rowwise_rep", "rowwise_split_input", "packed_rowwise", "embedding_colwise")
_GATHERED = ("colwise_gather_output", "colwise_rep", "embedding_colwise")
_ADDED_UP = ("rowwise", "rowwise_rep", "rowwise_split_input", "embedding_rowwise", "all_reduce", "moe_tp_experts")
_WHOLE = (
    "all_reduce",
    "local_params",
    "mla_kv_a_proj",
    "moe_identity_expert",
    "moe_tp_experts",
    "replicate",
    "replicated_with_grad_allreduce",
)


def split_over_devices(model: nn.Module, edits: HeadEdits, devices: int) -> None:
    """Cuts a model on the meta device down to what one of several devices has, the one that has most, in place.

    Args:
        model: of transformers.
        edits: on the model. Each device holds all of them; those of its own heads are left, as they act.
        devices: how many share every layer.

    Raises:
        HeadEditError: transformers has no plan for the model, one with styles that are not known here, or heads that
            cannot be shared by so many.
    """
    plan: dict[str, str] = getattr(model, "_tp_plan", None) or {}
    if not any(style in _BY_OUTPUTS for style in plan.values()):
        raise HeadEditError(
            f"split: tensor_parallel: transformers has no tensor parallel plan for {type(model).__name__}. Share it by "
            "fsdp or device_map."
        )
    unknown = sorted(set(plan.values()) - {*_BY_OUTPUTS, *_BY_INPUTS, *_WHOLE})
    if unknown:
        raise HeadEditError(
            f"split: tensor_parallel: the plan of {type(model).__name__} shares layers in a way that is not known here "
            f"({', '.join(unknown)}). Measure it with one step on the devices."
        )
    _check_heads(model, edits, plan, devices)
    cut: dict[tuple[int, int], nn.Parameter] = {}  # tied weights stay tied
    for name, module in list(model.named_modules()):
        style = plan.get(_generic(name), "")
        for parameter in list(module._parameters):
            of_parameter = plan.get(_generic(f"{name}.{parameter}"), style)
            _cut(module, parameter, of_parameter, devices, cut)
        if style in _BY_OUTPUTS and not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(_with_gradient_added_up)
        if style in _BY_INPUTS and not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(_with_own_inputs)
        if style in _GATHERED:
            module.register_forward_hook(partial(_gather, devices))
        if style in _ADDED_UP:
            module.register_forward_hook(_add_up)
    for site, edit in edits.module.pairs():
        if plan.get(_generic(site.path)) == "rowwise":
            _leave_own_heads(edit, devices)


def _generic(name: str) -> str:
    """A name as plans have it: of all layers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _check_heads(model: nn.Module, edits: HeadEdits, plan: dict[str, str], devices: int) -> None:
    numbers = {("heads", site.heads) for site in edits.sites if plan.get(_generic(site.path)) == "rowwise"}
    if any(name.endswith(".k_proj") and style == "colwise" for name, style in plan.items()):
        numbers.add(("key-value heads", getattr(text_config(model), "num_key_value_heads", None) or devices))
    for what, number in sorted(numbers):
        if number % devices:
            raise HeadEditError(
                f"split: tensor_parallel: {devices} devices cannot share the {number} {what} of {type(model).__name__} "
                f"evenly. Choose a number of devices that divides {number}."
            )


def _cut(module: nn.Module, name: str, style: str, devices: int, cut: dict[tuple[int, int], nn.Parameter]) -> None:
    whole = module._parameters[name]
    if whole is None or style not in (*_BY_OUTPUTS, *_BY_INPUTS) or (style in _BY_INPUTS and whole.dim() == 1):
        return
    dim = whole.dim() - 1 if style in _BY_INPUTS else max(0, whole.dim() - 2)
    key = id(whole), dim
    if key not in cut:
        shape = list(whole.shape)
        shape[dim] = -(-shape[dim] // devices)
        cut[key] = nn.Parameter(whole.new_empty(shape), requires_grad=whole.requires_grad)
        cut[id(cut[key]), dim] = cut[key]
    module._parameters[name] = cut[key]


def _leave_own_heads(edit: Any, devices: int) -> None:
    edit.heads //= devices
    edit._traits += f" of {devices} devices"
    for tensors in (edit.vectors, edit.gates):
        for name in tensors:
            tensors._parameters[name] = nn.Parameter(tensors[name].detach()[: edit.heads])


def _with_gradient_added_up(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_Replicated.apply(args[0]), *args[1:])  # type: ignore[no-untyped-call]


def _with_own_inputs(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    width = module.weight.shape[-1]
    return args if args[0].shape[-1] == width else (args[0][..., :width], *args[1:])


def _gather(devices: int, module: nn.Module, args: object, output: Tensor) -> Tensor:
    found: Tensor = _Gathered.apply(output, devices)  # type: ignore[no-untyped-call]
    return found


def _add_up(module: nn.Module, args: object, output: Tensor) -> Tensor:
    found: Tensor = _AddedUp.apply(output)  # type: ignore[no-untyped-call]
    return found


class _Replicated(torch.autograd.Function):
    """An input that all devices have, whose gradient they add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.empty_like(gradients[0])


class _Gathered(torch.autograd.Function):
    """The outputs of all devices side by side."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, devices: int) -> Tensor:
        ctx.width = own.shape[-1]
        return own.new_empty(*own.shape[:-1], devices * ctx.width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][..., : ctx.width].contiguous(), None


class _AddedUp(torch.autograd.Function):
    """The sum of the outputs of all devices."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return torch.empty_like(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
