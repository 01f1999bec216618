"""Forward passes of a model through nnsight, which read the inputs of modules and replace them.

nnsight (Fiotto-Kaufman et al., "NNsight and NDIF: Democratizing access to foundation model internals", ICLR 2025,
arXiv 2407.14561). It runs inside a module's hooks: at a site it reads the heads after the edits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.specs import HeadSite

_LEFT = ("forward", "__nnsight__")  # attributes that nnsight leaves in wrapped modules


class Traces:
    """Traced forward passes of a model, without gradients.

    Args:
        wrapped: the model, wrapped by nnsight.
    """

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    @torch.no_grad()
    def logits(
        self, inputs: Mapping[str, Any], site: HeadSite | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits, [batch, tokens, vocabulary], with the input of one site's module changed if ``site`` is given."""
        model = self._wrapped
        with model.trace(**inputs):
            if site is not None and change is not None:
                module = model.get(site.path)
                module.input = change(module.input)
            found = model.output.logits.save()
        result: Tensor = found
        return result

    @torch.no_grad()
    def heads(self, inputs: Mapping[str, Any], sites: Sequence[HeadSite]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and by the site's path the input of its module, after the edits.

        Raises:
            HeadEditError: a module does not run exactly once in a forward pass.
        """
        model = self._wrapped
        modules = [model.get(path) for path in dict.fromkeys(site.path for site in sites)]
        with model.trace(**inputs) as tracer:
            cache = tracer.cache(modules=modules, device=None, include_inputs=True, include_output=False)
            found = model.output.logits.save()
        given: dict[str, Tensor] = {}
        ran = set(cache.keys())
        for module in modules:
            path = module.path.partition(".")[2]
            count = len(cache[module.path]) if module.path in ran else 0
            if count != 1:
                raise HeadEditError(
                    f"{path} runs {count} times in a forward pass, so a head's output has no single counterpart in "
                    "the other run. Use leave_one_out."
                )
            given[path] = cache[module.path].input
        return found, given


@contextmanager
def traces(model: nn.Module) -> Iterator[Traces]:
    """Wraps the model with nnsight in eval mode while the context lasts; afterwards its modules are as before.

    Raises:
        HeadEditError: nnsight is not installed.
    """
    try:
        nnsight = import_module("nnsight")
    except ImportError as error:
        raise HeadEditError(
            "Switching and patching heads needs nnsight 0.8 or newer. Install it: pip install 'nnsight>=0.8'."
        ) from error
    modules = list(model.modules())
    before = [{name: module.__dict__[name] for name in _LEFT if name in module.__dict__} for module in modules]
    try:
        with evaluating(model):
            yield Traces(nnsight.NNsight(model))
    finally:
        for module, values in zip(modules, before, strict=True):
            for name in _LEFT:
                module.__dict__.pop(name, None)
            module.__dict__.update(values)
