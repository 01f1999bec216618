"""Attention and experts on the meta device, computed with the kernels that another device would use."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_ATEN = torch.ops.aten


class KernelsOf(TorchFunctionMode):
    """Replaces operators of the meta device by those that another device would choose.

    For ``scaled_dot_product_attention`` the meta device takes the kernel that writes down all scores. A fused kernel is
    taken where there are keys for every head, or torch knows that heads share them; on a CPU only without dropout,
    without gradients of the mask, and where values are as wide as keys. The meta device has ``_grouped_mm``, by which
    experts are run together, for bfloat16 only.
    """

    def __init__(self, device: Literal["cuda", "cpu"]) -> None:
        super().__init__()
        self._attend = _on_gpu if device == "cuda" else _on_cpu

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention and _has_keys_for_heads(*args[:2], **(kwargs or {})):
            return self._attend(*args, **(kwargs or {}))
        if func is torch._grouped_mm and args[0].dtype != torch.bfloat16:
            return args[0] @ args[1][0]
        return func(*args, **(kwargs or {}))


def _has_keys_for_heads(query: Tensor, key: Tensor, *, enable_gqa: bool = False, **others: Any) -> bool:
    return enable_gqa or query.shape[1] == key.shape[1]


def _on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    result: Tensor
    if attn_mask is None and value.shape[-1] == query.shape[-1]:
        result = _ATEN._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return result
    if key.shape[1] != query.shape[1]:  # which the efficient kernel does not take
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    result = _ATEN._scaled_dot_product_efficient_attention(
        query, key, value, bias, query.requires_grad or key.requires_grad, dropout_p, is_causal, scale=scale
    )[0]
    return result


def _on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    learned = attn_mask is not None and attn_mask.requires_grad
    if dropout_p or learned or value.shape[-1] != query.shape[-1]:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    result: Tensor = _ATEN._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
    )[0]
    return result


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as what is added to the scores: of the dtype of the query, a new one for a boolean mask."""
    bias = torch.zeros_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask
    return bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
