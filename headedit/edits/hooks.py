"""The pre-hooks of the sites, and those around a pass.

A hook applies whatever acts at its site in the pass; another adapter is chosen without a new hook and without
compiling again.
"""

import sys
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headedit.edits.affine import Affine, heads_shape
from headedit.edits.choices import Choices
from headedit.edits.passes import Passes
from headedit.edits.positions import acts_on
from headedit.edits.replicas import begin_pass
from headedit.edits.site_edit import SiteEdit
from headedit.edits.site_input import SiteInput, site_input
from headedit.edits.token_hooks import TokenHooks, refuse_compiled
from headedit.edits.uncalled import Uncalled
from headedit.edits.whole import several_processes
from headedit.hf.compiled import uncompiled
from headedit.hf.sharding import tensor_parallel_group
from headedit.specs import HeadSite, Spec


class SiteHook:
    """The hook of one site.

    Args:
        site: the site's name.
        parent: the module that holds the site's module.
        name: the name of the site's module in it.
        choices: of the handle and of contexts.
        passes: the passes under way.
        tokens: which of their tokens are prompt.

    Fields:
        module: the module that it is on.
    """

    def __init__(
        self, site: str, parent: nn.Module, name: str, choices: Choices, passes: Passes, tokens: TokenHooks
    ) -> None:
        self._site, self._choices, self._passes, self._tokens = site, choices, passes, tokens
        self._siblings, self._name = uncompiled(parent)._modules, name
        self.module = parent.get_submodule(name)
        self._hook = self.module.register_forward_pre_hook(self._edit)

    def follow(self) -> None:
        """Moves the hook to the module at the site, if that was exchanged for another."""
        module = self._siblings[self._name]
        if module is not self.module and module is not None:
            self._hook.remove()
            self.module, self._hook = module, module.register_forward_pre_hook(self._edit)

    def remove(self) -> None:
        """Removes the hook."""
        self._hook.remove()

    def _edit(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if torch.compiler.is_compiling():
            choice = self._choices.now()
            effective, strength, affine = choice.by_site.get(self._site), choice.strength, None
        elif (running := self._passes.current()) is not None:
            running.fired.add(self._site)
            effective, strength = running.active.get(self._site), running.strength
            affine = None if effective is None else self._passes.affine(running, effective)
        else:
            choice, strength = self._passes.outside()
            effective, affine = choice.by_site.get(self._site), None
        if effective is None:
            return None
        if affine is None:
            if effective.idle:
                return None
            if isinstance(effective, SiteEdit):
                affine = effective.affine(strength, self._passes.group if effective.draws else None)
        given = site_input(module, args[0], effective.heads * effective.head_dim, effective.path)
        if effective.positions == "all":
            edited = _applied(effective, affine, given)
        else:
            some = self._edit_some(module, effective, affine, given)
            if some is None:
                return None
            edited = some
        return (given.put_back(edited), *args[1:])

    def _edit_some(self, module: nn.Module, effective: Any, affine: Any, given: SiteInput) -> Tensor | None:
        """The edit where it acts on some tokens alone; the others stay as they are, bit for bit."""
        z = given.values
        if torch.compiler.is_compiling():
            refuse_compiled(effective.path)
        tokens = self._tokens.current()
        found = tokens.acting(effective.positions, z.device)
        if found is False:
            return None
        if module.training and torch.is_grad_enabled():
            self._tokens.check_learns(found, effective.positions)
        width = 1 if given.part is not None else len(heads_shape(z, effective))
        mask = acts_on(found, z, tokens, width, effective.path)
        edited = _applied(effective, affine, given)
        return edited if mask is None else torch.where(mask, edited, z)


def _applied(effective: Any, affine: Affine | None, given: SiteInput) -> Tensor:
    part = given.part
    found: Tensor = effective(given.values, part=part) if affine is None else effective(given.values, affine, part)
    return found


class SiteHooks:
    """The hook of every site, on the module that is at the site, even after that module was exchanged.

    PEFT puts a wrapper around a projection and removes it again. A hook that stayed on the projection would hide the
    edit from the wrapper's own branch, and one that stayed on a removed wrapper would no longer act. So a hook in front
    of the module that holds all sites looks before each pass whether the sites' modules are the same. There a pass
    begins and ends as well.

    Args:
        model: the model.
        spec: where its heads are.
        choices: of the handle and of contexts.

    Fields:
        passes: the passes under way.
    """

    def __init__(self, model: nn.Module, spec: Spec, choices: Choices) -> None:
        self._model, self._choices = model, choices
        self._by_site: dict[str, SiteHook] = {}
        self._parents: list[str] = []
        self.passes, self._tokens = Passes(choices), TokenHooks(choices)
        self._uncalled = Uncalled(model, spec)
        self._around: list[RemovableHandle] = []
        self._held_by: nn.Module | None = None

    def add(self, sites: Iterable[HeadSite], positions: str = "all") -> None:
        """Puts a hook on each site that has none, and around the model where edits act on some tokens alone."""
        new = [site for site in sites if site.name not in self._by_site]
        for site in new:
            parent, _, name = site.path.rpartition(".")
            module = self._model.get_submodule(parent)
            self._by_site[site.name] = SiteHook(site.name, module, name, self._choices, self.passes, self._tokens)
            self._parents.append(parent)
            self._uncalled.add(site)
        self.passes.group = self.group()
        holder = self._holder()
        if holder is not self._held_by:
            before, self._held_by = self._around, holder
            self._around = [
                holder.register_forward_pre_hook(self._begin),
                holder.register_forward_hook(self._end, always_call=True),
            ]
            for handle in before:
                handle.remove()
        some = positions != "all" or self._tokens.there
        if some and (new or not self._tokens.there):
            self._tokens.put_on(self._around_layers())
            new = new or list(sites)
        if new and "torch._dynamo" in sys.modules:
            # so that a graph is never used for another model of the same code, or for this one before or after, whose
            # hooks are others: by default a compiled model does not look at hooks again
            sys.modules["torch._dynamo"].config.skip_nnmodule_hook_guards = False
            torch.compiler.reset()

    def remove(self) -> None:
        """Removes all hooks."""
        for hook in self._by_site.values():
            hook.remove()
        for handle in self._around:
            handle.remove()
        self._tokens.remove()

    def group(self) -> Any:
        """The processes that share the layers of the model; None for this one alone."""
        return tensor_parallel_group(self._model, (hook.module for hook in self._by_site.values()))

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for hook in self._by_site.values():
            hook.follow()
        if not torch.compiler.is_compiling():
            if several_processes():
                acting = (edit for edit in self._choices.now().by_site.values() if isinstance(edit, SiteEdit))
                begin_pass(self._model, acting, learning=torch.is_grad_enabled())
            running = self.passes.begin(module.training)
            if module.training:
                running.group = self.passes.group = self.group()
            self._uncalled.begin(running, module)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        running = self.passes.end()
        if running is not None:
            self._uncalled.end(running, completed=output is not None)

    def _around_layers(self) -> list[nn.Module]:
        """The model and the modules in it that hold all sites, from the outermost to the one that has the layers."""
        paths = [path.split(".") for path in self._parents]
        parts = [same[0] for same in takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))]
        found = [self._model]
        for i in range(len(parts)):
            module = self._model.get_submodule(".".join(parts[: i + 1]))
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                break
            found.append(module)
        return found

    def _holder(self) -> nn.Module:
        """The innermost module with a forward pass of its own that holds all sites."""
        paths = [path.split(".") for path in self._parents]
        parts = [same[0] for same in takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))]
        while parts and isinstance(self._model.get_submodule(".".join(parts)), nn.ModuleList | nn.ModuleDict):
            parts = parts[:-1]
        return self._model.get_submodule(".".join(parts))
