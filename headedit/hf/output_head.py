"""The head of a causal LM: from hidden states to logits, for the tokens whose logits are wanted and no others."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headedit.hf.config import text_config
from headedit.hf.modes import evaluating

_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
_DIVISORS = ("logits_scaling",)
_CAP = "final_logit_softcapping"
_LARGE = 100.0  # logits at which a cap shows
_PROBE = [[3, 4, 5, 6], [7, 8, 9, 10]]
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # a share of the largest logit; 2 % in 16 bits


@dataclass
class Hidden:
    """What a head was given in a pass, without the logits of it.

    Fields:
        states: [batch, tokens, width]; None where the head was not called with hidden states.
        autocast: the dtype that autocast was on with; None where it was off.
    """

    states: Tensor | None = None
    autocast: torch.dtype | None = None

    def as_in_the_pass(self) -> AbstractContextManager[Any]:
        """A context with autocast as it was in the pass."""
        if self.states is None or self.autocast is None:
            return nullcontext()
        return torch.autocast(self.states.device.type, self.autocast)


@dataclass(frozen=True)
class OutputHead:
    """The projection of a model to its vocabulary, and what the model does to the result.

    Fields:
        module: the projection.
        vocabulary: how many logits a token has.
        factor: multiplies the logits; None for none.
        divisor: divides them; None for none.
        cap: c in c · tanh(logits / c), which comes last; None for none.
    """

    module: nn.Module
    vocabulary: int
    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of hidden states, [..., vocabulary], as the model computes them."""
        found: Tensor = self.finish(self.module(hidden))
        return found

    def finish(self, logits: Tensor) -> Tensor:
        """What the model makes of the result of its projection."""
        if self.factor is not None:
            logits = logits * self.factor
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    @contextmanager
    def captured(self) -> Iterator[Hidden]:
        """A context in which a pass of the model makes logits for one token, and notes what the others are made of."""
        found = Hidden()

        def capture(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not (args and isinstance(args[0], Tensor) and args[0].dim() == 3):
                return None
            found.states, kind = args[0], args[0].device.type
            casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
            found.autocast = torch.get_autocast_dtype(kind) if casts else None
            return (args[0][:, :1], *args[1:])

        handle = self.module.register_forward_pre_hook(capture)
        try:
            yield found
        finally:
            handle.remove()


@dataclass
class _Probe:
    """What a model makes of large results of its projection."""

    hidden: Hidden = field(default_factory=Hidden)
    projected: Tensor | None = None

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return None
        self.hidden.states = args[0]
        self.projected = output * (_LARGE / output.abs().max().clamp(min=1e-12)).to(output.dtype)
        return self.projected


@torch.no_grad()
def output_head(model: Any) -> OutputHead | None:
    """The head of a model, where the logits of every token follow from its hidden state alone.

    It is tried on a few tokens, at logits so large that a cap shows; None where what the model gives is something else.

    Args:
        model: a causal LM of transformers; every module of it is put back into the mode it was in.
    """
    module = _projection(model)
    weight: Any = getattr(module, "weight", None)
    if module is None or weight.is_meta:
        return None
    ids = torch.tensor(_PROBE, device=weight.device) % weight.shape[0]
    probe = _Probe()
    handle = module.register_forward_hook(probe.note)
    try:
        with evaluating(model):
            given = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return None
    finally:
        handle.remove()
    states, projected = probe.hidden.states, probe.projected
    if states is None or projected is None or projected.shape != given.shape or states.shape[:2] != ids.shape:
        return None
    heads = _candidates(model, module, given.shape[-1])
    return next((head for head in heads if _same(head.finish(projected), given)), None)


def head_by_name(model: Any) -> OutputHead | None:
    """The head of a model as its config names it, not tried; for a model without values, of which nothing can be."""
    module = _projection(model)
    return None if module is None else list(_candidates(model, module, module.weight.shape[0]))[-1]


def _projection(model: Any) -> Any:
    """The module that makes the logits by a matrix; None where there is none."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        module = get() if callable(get) else None
    except NotImplementedError:
        return None
    weight = getattr(module, "weight", None)
    return module if isinstance(module, nn.Module) and weight is not None and weight.dim() == 2 else None


def _candidates(model: Any, module: nn.Module, vocabulary: int) -> Iterator[OutputHead]:
    text = text_config(model.config)
    cap = _number(text, _CAP)
    yield OutputHead(module, vocabulary, cap=cap)
    for name in _FACTORS:
        if (factor := _number(text, name)) is not None:
            yield OutputHead(module, vocabulary, factor=factor, cap=cap)
    for name in _DIVISORS:
        if (divisor := _number(text, name)) is not None:
            yield OutputHead(module, vocabulary, divisor=divisor, cap=cap)


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and value else None


def _same(found: Tensor, given: Tensor) -> bool:
    tolerance = _TOLERANCE.get(given.dtype, 0.02)
    found, given = found.double() if found.device.type != "mps" else found.float(), given.to(found.device)
    return bool((found - given).abs().max() <= tolerance * given.abs().max())
