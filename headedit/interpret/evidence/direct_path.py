"""The direct path from a head to the logits: the modules that a change of its output passes without a later layer.

The path of an offset is: its head's part of the site's module; norms after that, before the residual stream (Gemma 2,
OLMo 2); the residual stream; the norm before the unembedding; the unembedding. It is found by one forward pass: a
module is next on the path if its input is the output of the last one, perhaps times a number. A norm is linearised
with its statistics held fixed at 1, so a change d becomes w ⊙ d, or w ⊙ (d − mean d) where it removes the mean: it is
N(d / σ) − N(0), times σ, where σ is the root mean square of d. The result is known up to a positive factor for each
head, which does not change the order of tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headedit.data.batches import token_embeddings
from headedit.edits import HeadEdits
from headedit.edits.affine import heads_shape
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.hf.sharding import refuse_tensor_parallel
from headedit.specs import HeadSite
from headedit.specs.probe import random_ids

_TOLERANCE = 0.05  # relative; a quantized or half-precision module may differ from linear by this much

_ROUNDING = 0.01  # of a number, in half precision

Kind = Literal["linear", "centred", "scaled"]
"""The kind of a module: linear, a norm that removes the mean, or a norm that does not."""


@dataclass(frozen=True)
class Step:
    """A module on the path, and its kind as a function."""

    module: nn.Module
    kind: Kind

    def image(self, d: Tensor) -> Tensor:
        """The change of the module's output by changes of its input, [1, changes, ..., width]; linear in them."""
        if self.kind == "centred":
            d = d - d.mean(-1, keepdim=True)
        size = d.float().square().mean(tuple(range(2, d.dim())), keepdim=True).sqrt()
        unit = d / torch.where(size > 0, size, 1).to(d)
        made: Tensor = _first(self.module(unit)) - _first(self.module(torch.zeros_like(unit)))
        return made * size.to(d)


@dataclass(frozen=True)
class DirectPath:
    """How changes of the sites' inputs reach the logits directly, not through later layers.

    Fields:
        branches: by the site's path, the steps from its module to the residual stream.
        tail: the steps from the residual stream through the unembedding.
        obstacles: by the site's path, why its path cannot be followed.
        given: by the site's path, an input of its module, for its shape and dtype.
    """

    branches: dict[str, list[Step]] = field(repr=False)
    tail: list[Step] = field(repr=False)
    obstacles: dict[str, str]
    given: dict[str, Tensor] = field(repr=False)

    @torch.no_grad()
    def logits(self, site: HeadSite, changes: Tensor) -> Tensor:
        """The change of the logits by changes of a site's input, [changes, heads * head_dim]; not for obstacles.

        Returns:
            [changes, vocabulary], float32, each up to a positive factor.
        """
        given = self.given[site.path]
        d = changes.to(given).view(1, -1, *heads_shape(given, site))
        for step in [*self.branches[site.path], *self.tail]:
            d = step.image(d)
        return d[0].float()


@dataclass(frozen=True)
class _Call:
    """One call of a module: its first input, its first output, and whether that input was the only one."""

    path: str
    module: nn.Module
    given: Tensor
    returned: Tensor
    alone: bool


def unembedding_of(model: nn.Module) -> nn.Module:
    """The module that computes the logits.

    Raises:
        HeadEditError: there is none.
    """
    get = getattr(model, "get_output_embeddings", None)
    found = get() if callable(get) else None
    if not isinstance(found, nn.Module) or isinstance(found, nn.ModuleList):
        raise HeadEditError(
            f"{type(model).__name__} has no single unembedding (by get_output_embeddings), so the tokens that an "
            "edit promotes cannot be read. Load the model with its language-model head, as AutoModelForCausalLM does."
        )
    return found


@torch.no_grad()
def direct_path(edits: HeadEdits, sites: Sequence[HeadSite]) -> DirectPath:
    """Finds the direct path of some sites in the base model by one forward pass over a few random tokens.

    Raises:
        HeadEditError: the model has no unembedding, or is tensor-parallel.
    """
    refuse_tensor_parallel(edits.model, (site.module for site in sites), "The direct path of heads to the logits")
    unembedding = unembedding_of(edits.model)
    with edits.disable_adapter(), evaluating(edits.model):
        calls = _trace(edits.model)
        tail = _tail(calls, unembedding, {_layer_of(site.path).rpartition(".")[0] for site in sites})
        branches: dict[str, list[Step]] = {}
        given: dict[str, Tensor] = {}
        obstacles: dict[str, str] = {}
        for site in sites:
            start = next((i for i, call in enumerate(calls) if call.path == site.path), None)
            if start is None:
                obstacles[site.path] = "it does not run in a forward pass over text"
                continue
            given[site.path] = calls[start].given
            branch = _branch(calls, start, _layer_of(site.path))
            if isinstance(tail, str) or isinstance(branch, str):
                obstacles[site.path] = tail if isinstance(tail, str) else str(branch)
            else:
                branches[site.path] = branch
    return DirectPath(branches, [] if isinstance(tail, str) else tail, obstacles, given)


def _trace(model: nn.Module) -> list[_Call]:
    """The calls of all modules in a forward pass over a few random tokens, in the order in which they returned."""
    calls: list[_Call] = []

    def keep(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        returned = _first(output)
        if tensors and isinstance(returned, Tensor):
            calls.append(_Call(path, module, tensors[0], returned, len(args) == 1 and not kwargs))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                stack.callback(module.register_forward_hook(partial(keep, path), with_kwargs=True).remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        model(input_ids=random_ids(model).to(token_embeddings(model).device), use_cache=False)
    return calls


def _branch(calls: Sequence[_Call], start: int, layer: str) -> list[Step] | str:
    """The steps from a site's module to the residual stream, which its layer returns, or why there are none."""
    if not calls[start].alone:
        return "its module has inputs other than the heads"
    kind = _kind(calls[start])
    if kind != "linear":
        return "it is followed directly by a norm or another function that is not linear"
    steps, value = [Step(calls[start].module, kind)], calls[start].returned
    for number, call in enumerate(calls[start + 1 :], start + 1):
        if call.path == layer:
            normed = _norm_of_stream(calls[start + 1 : number], call)
            if normed is not None:
                return f"{normed}, behind the residual stream, changes what {layer} and later layers pass on"
            fits = call.returned.shape[-1] == value.shape[-1]
            return steps if fits else f"its output is not as wide as what {layer} returns"
        if _proportional(call.given, value) and not any(call.module.children()):
            kind = _kind(call) if call.alone else None
            if kind is None:
                return f"{call.path}, after it, is neither linear nor a norm"
            steps.append(Step(call.module, kind))
            value = call.returned
    return f"it runs outside {layer}"


def _norm_of_stream(calls: Sequence[_Call], layer: _Call) -> str | None:
    """The module of a layer whose output the layer returns, as in models with norms behind the residual stream."""
    for call in calls:
        inside = call.path.startswith(f"{layer.path}.") and not any(call.module.children())
        if inside and _proportional(call.returned, layer.returned) and not _proportional(call.given, call.returned):
            return call.path
    return None


def _tail(calls: Sequence[_Call], unembedding: nn.Module, stacks: set[str]) -> list[Step] | str:
    """The steps from the last layer's output through the unembedding, or why there are none."""
    last = next((i for i in reversed(range(len(calls))) if calls[i].module is unembedding), None)
    if last is None:
        return "the unembedding does not run in a forward pass over text"
    steps, value = [Step(unembedding, "linear")], calls[last].given
    for call in reversed(calls[:last]):
        if not _proportional(call.returned, value):
            continue
        above, _, number = call.path.rpartition(".")
        if above in stacks and number.isdigit():
            return steps
        if not any(call.module.children()):
            kind = _kind(call) if call.alone else None
            if kind is None:
                return f"{call.path}, before the unembedding, is neither linear nor a norm"
            steps.insert(0, Step(call.module, kind))
            value = call.given
    return "the unembedding does not get the last layer's output only through a norm"


def _kind(call: _Call) -> Kind | None:
    """The kind of a module, by its outputs for a few random inputs; None for any other function."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(call.given[:1, :1].shape, generator=generator).to(call.given)
    zero, one, two, shifted = (_first(call.module(v)).float() for v in (torch.zeros_like(u), u, 2 * u, u + 1))
    size = _TOLERANCE * (one - zero).norm()
    if (two - 2 * one + zero).norm() <= size:
        return "linear"
    if (two - one).norm() <= size:
        return "centred" if (shifted - one).norm() <= size else "scaled"
    return None


def _layer_of(path: str) -> str:
    """The path of the layer that a module is in: up to the first number."""
    parts = path.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def _proportional(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor is the other times a positive factor, up to rounding."""
    if a.shape[-1] != b.shape[-1] or a.numel() != b.numel():
        return False
    a, b = a.flatten().float(), b.flatten().to(a.device).float()
    scaled = (a @ b) / (b @ b) * b
    return bool(a @ b > 0) and bool(((a - scaled).abs() <= _ROUNDING * scaled.abs()).all())


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output
