"""Sites whose module is not called in a pass, so that their edit cannot act: found in the pass, and refused by name.

Attention or a fused kernel can take the weight of a projection and never call the module. In the first pass of each
mode, and wherever a site was missed, hooks on the modules that hold the sites tell whether those ran: a layer that was
skipped as a whole (layer drop, early exit) is no fault. A site inside a compiled module cannot be seen, so it is not
looked for; there the compiler traces hooks, or the engine is refused when the edits are attached.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from headedit.edits.passes import Pass
from headedit.errors import HeadEditError
from headedit.hf.compiled import is_compiled, is_inside_compiled
from headedit.hf.config import drops_layers
from headedit.io.describe import first_names
from headedit.specs import HeadSite, Spec


class Uncalled:
    """Looks in each pass for sites that should have been called.

    Args:
        model: the model.
        spec: where its heads are, and what is known about their being called.
    """

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        self._model, self._spec = model, spec
        self._sites: dict[str, HeadSite] = {}
        self._fired: dict[Hashable, set[str]] = {}
        self._compiled: set[str] = set()
        self._missed = False
        self._watches: dict[Pass, Watch] = {}

    def add(self, site: HeadSite) -> None:
        """Looks for a site as well."""
        self._sites[site.name] = site

    def begin(self, running: Pass, holder: nn.Module) -> None:
        """Begins a pass of the module that holds all sites."""
        running.kind = (holder.training, torch.is_grad_enabled())
        seen = self._fired.get(running.kind, set()) | self._compiled
        if not self._missed and running.active.keys() <= seen:
            return
        self._compiled = {name for name in running.active if is_inside_compiled(self._model, self._sites[name].path)}
        watched = [self._sites[name] for name in running.active if name not in self._compiled]
        self._watches[running] = Watch(self._model, holder, watched)

    def end(self, running: Pass, *, completed: bool) -> None:
        """Ends a pass.

        Args:
            running: the pass.
            completed: whether it ran to its end.

        Raises:
            HeadEditError: a site was not called though the module that holds it ran, or none was called in training.
        """
        watch = self._watches.pop(running, None)
        if watch is not None:
            watch.remove()
        if not completed:
            return
        missing = running.active.keys() - running.fired - self._compiled
        self._missed = bool(missing)
        if watch is None:
            return
        self._fired.setdefault(running.kind, set()).update(running.fired)
        if not missing:
            return
        passed_by = [self._sites[name] for name in running.active if name in missing and name in watch.entered]
        if passed_by:
            raise HeadEditError(self._passed_by(passed_by))
        if running.training and not running.fired and not self._may_skip():
            raise HeadEditError(
                f"No edited layer of this {type(self._model).__name__} was called in a training pass, so nothing would "
                "be learnt: whatever runs the layers takes their weights elsewhere. Attach the edits before the model "
                "is handed to an engine that compiles or copies it."
            )

    def _passed_by(self, sites: list[HeadSite]) -> str:
        first = sites[0]
        holder = type(self._model.get_submodule(first.path.rpartition(".")[0])).__name__
        kinds = {site.kind for site in sites}
        known = [rule.fused_by for kind in kinds for rule in self._spec.rules(kind) if rule.fused_by is not None]
        why = (
            f"{known[0]}."
            if known
            else (
                f"{holder} seems to use a fused kernel that takes their weights. Choose an implementation that calls "
                "them, such as model.set_attn_implementation('sdpa') or 'eager', or load the model without kernels."
            )
        )
        return (
            f"The edits of {first_names([site.path for site in sites])} cannot act: {holder} ran, but these modules "
            f"were never called, so their hooks did not run. {why} EditConfig(sites=..., layers=...) leaves sites out."
        )

    def _may_skip(self) -> bool:
        """Whether all layers may have been skipped by intent, or have run as a compiled graph."""
        return is_compiled(self._model) or drops_layers(self._model)


class Watch:
    """Hooks, for one pass, on the modules that hold some sites.

    Args:
        model: the model.
        running: the module whose pass has begun.
        sites: the sites.

    Fields:
        entered: the names of the sites whose holding module ran.
    """

    def __init__(self, model: nn.Module, running: nn.Module, sites: list[HeadSite]) -> None:
        self.entered: set[str] = set()
        self._hooks: list[RemovableHandle] = []
        for site in sites:
            path = site.path.rpartition(".")[0]
            while path and isinstance(model.get_submodule(path), nn.ModuleList | nn.ModuleDict):
                path = path.rpartition(".")[0]
            module = model.get_submodule(path)
            if module is running:
                self.entered.add(site.name)
            else:
                self._hooks.append(module.register_forward_pre_hook(self._enters(site.name)))

    def _enters(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: self.entered.add(name)

    def remove(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
