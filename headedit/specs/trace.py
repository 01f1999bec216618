"""Traces one forward pass: which modules are called after attention has run, and may take its heads."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.specs.head_pass import HeadPass
from headedit.specs.probe import attention_set_to
from headedit.specs.sites import general, input_width

BY_HAND = "Write the spec by hand, see 'Add an architecture' in the documentation"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a module with an input [..., (groups,) width], in a window in which attention had run before."""

    path: str
    window: str
    heads: int
    groups: int
    width: int
    order: int
    module: nn.Module


def trace_calls(model: nn.Module, ids: Tensor) -> list[Call]:
    """Runs the model once and lists what was called after attention had run around it.

    Args:
        model: a live causal LM; it is returned to its state.
        ids: one sequence of token ids, [1, tokens].

    Returns:
        A call for each module inside a numbered layer whose input divides into the heads of an attention before it.

    Raises:
        HeadEditError: no attention over heads was seen, no module could take its heads, or the model cannot run.
    """
    names = {name: module for name, module in model.named_modules() if general(name)[1] >= 0}
    windows = {module: name for name, module in names.items() if any(module.children())}
    trace = HeadPass([], dict.fromkeys(windows, 0))
    calls: dict[str, Call] = {}
    with ExitStack() as hooks:
        for name, module in names.items():
            if module not in windows:
                note = partial(_note, name, trace, windows, calls)
                hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        with torch.no_grad(), evaluating(model), attention_set_to(model, "eager"):  # flash attention would not be seen
            trace.run(model, ids)
    ran = {name: numbers for module, name in windows.items() if (numbers := _heads(trace.seen[module]))}
    if not ran:
        raise HeadEditError(
            f"{type(model).__name__}: neither softmax nor scaled_dot_product_attention ran over several heads inside "
            "numbered layers (as in layers.0). Linear mixers and attention written with einsum or without softmax "
            f"cannot be drafted. {BY_HAND}."
        )
    if not calls:
        listed = ", ".join(f"{name} ({numbers[-1]} heads)" for name, numbers in list(ran.items())[-3:])
        raise HeadEditError(
            f"{type(model).__name__}: attention ran inside {listed}, but no module called after it there takes an "
            f"input that divides into its heads. {BY_HAND}."
        )
    return list(calls.values())


def _note(
    path: str,
    trace: HeadPass,
    windows: Mapping[nn.Module, str],
    calls: dict[str, Call],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Notes a call if attention ran before it in a module around it, and its input may hold the heads."""
    value = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
    window = next((w for w in reversed(trace.running) if _heads(trace.seen[w])), None)
    known = input_width(module)
    if value is None or window is None or (known is None and next(module.parameters(recurse=False), None) is None):
        return  # a dropout or an activation takes the heads too, but is not a projection
    groups = value.shape[-2] if value.dim() > 3 else 1
    width = value.shape[-1]
    heads = next((n for n in reversed(_heads(trace.seen[window])) if width * groups % n == 0), None)
    if heads is not None and known in (None, width):
        calls[path] = Call(
            path=path,
            window=windows[window],
            heads=heads,
            groups=groups,
            width=width,
            order=len(calls),
            module=module,
        )


def _heads(seen: Iterable[int]) -> list[int]:
    """Numbers of heads, without a router's softmax over [1, tokens, experts], which looks like a single head."""
    return [number for number in seen if number > 1]
