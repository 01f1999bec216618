"""A forward pass that scales one attention head where it is computed, and records what enters the sites."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from headedit.errors import HeadEditError
from headedit.specs.sites import HeadSite

_SOFTMAX = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)
_EXP = (torch.exp, Tensor.exp)


class HeadPass(TorchFunctionMode):
    """A forward pass that records what enters the sites, and may scale one head in every window.

    A window is a module in which a site's attention runs. Where a head is scaled, each window still returns what it
    did in the base pass: what comes after starts from the same input, so all layers can be scaled at once. With
    ``by_exp`` the probabilities are those of an attention that normalises the exponent itself, as Reformer does.
    """

    def __init__(
        self,
        sites: Iterable[HeadSite],
        windows: Mapping[nn.Module, int],
        *,
        head: int = 0,
        factor: float = 1.0,
        base: "HeadPass | None" = None,
        by_exp: bool = False,
    ) -> None:
        super().__init__()
        self.modules, self.windows = {site.module for site in sites}, windows
        self.head, self.factor, self.base, self.by_exp = head, factor, base, by_exp
        self.running: list[nn.Module] = []
        self.inputs: dict[nn.Module, list[Tensor]] = defaultdict(list)
        self.outputs: dict[nn.Module, list[Any]] = defaultdict(list)
        self.seen: dict[nn.Module, list[int]] = defaultdict(list)  # heads of each attention that ran in a window

    def run(self, model: nn.Module, ids: Tensor) -> "HeadPass":
        """Runs the model once; the hooks are removed afterwards."""
        device = next((p.device for p in model.parameters() if not p.is_meta), None)  # meta: offloaded
        named = signature(model.forward).parameters.values()
        cache = {"use_cache": False} if any(p.name == "use_cache" or p.kind == p.VAR_KEYWORD for p in named) else {}
        try:
            with ExitStack() as hooks, torch.random.fork_rng(devices=[]), self:
                for module in self.modules:
                    arrive = module.register_forward_pre_hook(self._arrive, prepend=True, with_kwargs=True)
                    hooks.callback(arrive.remove)
                for window in self.windows:
                    hooks.callback(window.register_forward_pre_hook(self._enter, prepend=True).remove)
                    hooks.callback(window.register_forward_hook(self._leave, always_call=True).remove)
                torch.default_generator.manual_seed(0)  # for a model that draws, such as one that hashes
                model(input_ids=ids.to(device), **cache)
        except Exception as error:  # whatever the model raises
            raise HeadEditError(
                f"{type(model).__name__} cannot run on input_ids {tuple(ids.shape)}: {type(error).__name__}: {error}. "
                "Give input_ids that it takes."
            ) from error
        return self

    def _arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs[module] += [v.clone() for v in (*args, *kwargs.values()) if isinstance(v, Tensor)][:1]

    def _enter(self, module: nn.Module, args: object) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: object, output: Any) -> Any:
        self.running.pop()
        self.outputs[module].append(_copied(output) if self.base is None else None)
        if self.base is None or self.running:
            return None
        return _replaced(output, self.base.outputs[module][len(self.outputs[module]) - 1])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = self.running and (
            func in _EXP and result.dim() > 3 if self.by_exp else _is_attention(func, args, kwargs or {}, result)
        )
        if not found:
            return result
        for window in self.running:
            self.seen[window].append(prod(self._head_axes(result)))
        return result if self.base is None else self._scaled(result, self.windows[self.running[-1]])

    def _scaled(self, result: Tensor, heads: int) -> Tensor:
        axes = self._head_axes(result)
        if self.head >= heads or heads not in (prod(axes), *axes):
            return result
        result = result.clone(memory_format=torch.contiguous_format)
        if prod(axes) == heads and not self.by_exp:
            result.view(-1, heads, *result.shape[-2:])[:, self.head] *= self.factor
        else:  # several streams of all heads at once, [batch, streams, heads, tokens, tokens]
            result.select(1 + axes.index(heads), self.head).mul_(self.factor)
        return result

    def _head_axes(self, result: Tensor) -> tuple[int, ...]:
        """Sizes of the axes of heads: [batch, (key-value heads,) heads, ...], [batch * heads, ...], or one alone."""
        if self.by_exp:  # [batch, heads, chunks, ...]
            return tuple(result.shape[1:2])
        return tuple(result.shape[1:-2]) if result.dim() > 3 else tuple(result.shape[:1])


def _is_attention(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether a call made probabilities or results of attention, its heads in the axes before the last two."""
    if func is F.scaled_dot_product_attention:
        return True
    over = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return func in _SOFTMAX and result.dim() > 2 and over in (-1, result.dim() - 1)


def _copied(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    return [_copied(item) for item in output] if isinstance(output, tuple | list) else None


def _replaced(output: Any, base: Any) -> Any:
    """The output with the tensors of the base pass, so that scaling a head changes nothing after the window."""
    if isinstance(output, Tensor):
        return base.clone()
    if type(output) in (tuple, list):
        return type(output)(_replaced(*pair) for pair in zip(output, base, strict=True))
    if isinstance(output, tuple) and hasattr(output, "_fields"):  # a named tuple takes its fields one by one
        return type(output)(*(_replaced(*pair) for pair in zip(output, base, strict=True)))
    return output
