"""The pre-hooks of the sites, and the computation of all their edits in one pass together.

A hook applies whatever is effective at its site; another adapter is chosen by exchanging that, without a new hook and
without compiling again.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headedit.edits.affine import Affine
from headedit.edits.site_edit import SiteEdit, affine_all
from headedit.specs import HeadSite

_saving_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class Effective(Protocol):
    """Whatever a hook can apply: the edit of a site, or another edit for each row of a batch."""

    @property
    def idle(self) -> bool:
        """Whether it leaves everything as it is."""
        ...

    @property
    def __call__(self) -> Callable[..., Tensor]:
        """Takes the input of a site's module and returns it edited."""
        ...


@dataclass
class _Pass:
    """A pass that is under way in one thread: the edits to compute, the mode it began in, and what was computed."""

    edits: Sequence[SiteEdit]
    mode: Any
    found: dict[SiteEdit, Affine] | None = None


class SiteBatch:
    """The edits of all sites in the pass that a thread is in, computed together when the first site asks.

    Vectors and gates are small, so their cost is the number of operators, which is the same for one site and for all.
    Nothing outlives the pass, and threads share nothing. A site computes its own edit where it cannot share: while a
    graph is compiled, which fuses operators anyway; when a layer is called without the model around it; where the site
    is offloaded as a whole; and within a checkpointed segment, which must compute the same again when it is recomputed.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    def __reduce__(self) -> tuple[type["SiteBatch"], tuple[()]]:
        return SiteBatch, ()  # a copy is in no pass

    def begin(self, effective: Iterable[object]) -> None:
        """Begins a pass in which these are effective at the sites."""
        if torch.compiler.is_compiling():
            return
        edits = [
            edit
            for edit in effective
            if isinstance(edit, SiteEdit) and not edit.idle and "_hf_hook" not in edit.__dict__
        ]
        self._threads.current = _Pass(edits, _mode()) if edits else None

    def end(self) -> None:
        """Ends the pass and forgets everything about it."""
        if not torch.compiler.is_compiling():
            self._threads.current = None

    def affine(self, edit: object) -> Affine | None:
        """The affine map of a site in this pass; None where the site has to compute it itself."""
        if torch.compiler.is_compiling():
            return None
        current: _Pass | None = getattr(self._threads, "current", None)
        if current is None or _mode() != current.mode:
            return None
        if current.found is None:
            current.found = dict(zip(current.edits, affine_all(current.edits), strict=True))
        return current.found.get(edit)  # type: ignore[call-overload, no-any-return]


class SiteHook:
    """The hook of one site.

    Args:
        parent: the module that holds the site's module.
        name: the name of the site's module in it.
        batch: the computation that the sites of a pass share.

    Fields:
        effective: applied to the input of the site's module; None for nothing.
    """

    def __init__(self, parent: nn.Module, name: str, batch: SiteBatch) -> None:
        self.effective: Effective | None = None
        self._batch = batch
        self._siblings, self._name = parent._modules, name
        self._module = parent.get_submodule(name)
        self._hook = self._module.register_forward_pre_hook(self._edit)

    def follow(self) -> None:
        """Moves the hook to the module at the site, if that was exchanged for another."""
        module = self._siblings[self._name]
        if module is not self._module and module is not None:
            self._hook.remove()
            self._module, self._hook = module, module.register_forward_pre_hook(self._edit)

    def remove(self) -> None:
        """Removes the hook."""
        self._hook.remove()

    def _edit(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        effective = self.effective
        if effective is None or effective.idle:
            return None
        affine = self._batch.affine(effective)
        return (effective(args[0]) if affine is None else effective(args[0], affine), *args[1:])


class SiteHooks:
    """The hook of every site, on the module that is at the site, even after that module was exchanged.

    PEFT puts a wrapper around a projection and removes it again. A hook that stayed on the projection would hide the
    edit from the wrapper's own branch, and one that stayed on a removed wrapper would no longer act. So a hook in front
    of the module that holds all sites looks before each pass whether the sites' modules are the same. There a pass
    begins and ends for ``SiteBatch`` as well.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._by_site: dict[str, SiteHook] = {}
        self._parents: list[str] = []
        self._batch = SiteBatch()
        self._around: list[RemovableHandle] = []

    def add(self, site: HeadSite) -> None:
        """Puts a hook on a site, unless it has one."""
        if site.name in self._by_site:
            return
        parent, _, name = site.path.rpartition(".")
        self._by_site[site.name] = SiteHook(self._model.get_submodule(parent), name, self._batch)
        self._parents.append(parent)
        self._remove_around()
        holder = self._holder()
        self._around = [
            holder.register_forward_pre_hook(self._begin),
            holder.register_forward_hook(self._end, always_call=True),
        ]

    def set(self, effective: Mapping[str, Effective]) -> None:
        """Makes every site apply what is given for its name, and the other sites nothing."""
        for name, hook in self._by_site.items():
            hook.effective = effective.get(name)

    def remove(self) -> None:
        """Removes all hooks."""
        for hook in self._by_site.values():
            hook.remove()
        self._remove_around()

    def _remove_around(self) -> None:
        for handle in self._around:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for hook in self._by_site.values():
            hook.follow()
        self._batch.begin(hook.effective for hook in self._by_site.values())

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._batch.end()

    def _holder(self) -> nn.Module:
        """The innermost module with a forward pass of its own that holds all sites."""
        paths = [path.split(".") for path in self._parents]
        parts = [same[0] for same in takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))]
        while parts and isinstance(self._model.get_submodule(".".join(parts)), nn.ModuleList | nn.ModuleDict):
            parts = parts[:-1]
        return self._model.get_submodule(".".join(parts))


def _mode() -> tuple[bool, Any]:
    """Whether gradients are recorded and how tensors are saved for them: a checkpointed segment differs in that."""
    gradients = torch.is_grad_enabled()
    if _saving_hooks is None:
        return gradients, object() if gradients else None
    return gradients, _saving_hooks(True)
