"""The pre-hooks of the sites: what they apply can be exchanged without a new hook, and without compiling anew."""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headedit.edits.together import Together
from headedit.specs import HeadSite


class Acting(Protocol):
    """What a switch can apply: the edit of a site, or another edit for each row of a batch."""

    @property
    def idle(self) -> bool:
        """Whether it leaves everything as it is."""
        ...

    @property
    def __call__(self) -> Callable[..., Tensor]:
        """Takes the input of a site's module, and gives it edited."""
        ...


class Switch:
    """The hook of a site.

    Args:
        parent: the module that holds the site's.
        name: its name there.
        together: what the sites of a training pass are computed by at once.

    Fields:
        acting: what is applied to the input of the site's module; None for nothing.
    """

    def __init__(self, parent: nn.Module, name: str, together: Together) -> None:
        self.acting: Acting | None = None
        self._together = together
        self._siblings, self._name = parent._modules, name
        self._module = parent.get_submodule(name)
        self._hook = self._module.register_forward_pre_hook(self._edit)

    def follow(self) -> None:
        """Moves the hook to the module that stands at the site now, if another one does."""
        module = self._siblings[self._name]
        if module is not self._module and module is not None:
            self._hook.remove()
            self._module, self._hook = module, module.register_forward_pre_hook(self._edit)

    def remove(self) -> None:
        """Takes the hook off."""
        self._hook.remove()

    def _edit(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        acting = self.acting
        if acting is None or acting.idle:
            return None
        line = self._together.line(acting)
        return (acting(args[0]) if line is None else acting(args[0], line), *args[1:])


class Switches:
    """The switch of every site, on the module that stands there, also when that is exchanged for another.

    PEFT puts a wrapper around a projection and takes it off again. A hook that stayed on the projection would hide the
    edit from the wrapper's own branch, and one that stayed on a wrapper would act no more. So a hook in front of the
    module that holds all sites looks before a forward pass whether they are what they were. That is where a training
    pass begins and ends for ``Together``, too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._switches: dict[str, Switch] = {}
        self._paths: list[str] = []
        self._together = Together()
        self._hooks: list[RemovableHandle] = []

    def put(self, site: HeadSite) -> None:
        """Puts a switch at a site, unless there is one."""
        if site.name in self._switches:
            return
        parent, _, name = site.path.rpartition(".")
        self._switches[site.name] = Switch(self._model.get_submodule(parent), name, self._together)
        self._paths.append(parent)
        self._unhook()
        holder = self._holder()
        self._hooks = [
            holder.register_forward_pre_hook(self._begin),
            holder.register_forward_hook(self._end, always_call=True),
        ]

    def set(self, acting: Mapping[str, Acting]) -> None:
        """Lets every site apply what is named for it, and the others nothing."""
        for name, switch in self._switches.items():
            switch.acting = acting.get(name)

    def remove(self) -> None:
        """Takes all hooks off."""
        for switch in self._switches.values():
            switch.remove()
        self._unhook()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for switch in self._switches.values():
            switch.follow()
        self._together.begin(switch.acting for switch in self._switches.values())

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._together.end()

    def _holder(self) -> nn.Module:
        """The innermost module with a forward pass of its own that holds all sites."""
        paths = [path.split(".") for path in self._paths]
        parts = [same[0] for same in takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))]
        while parts and isinstance(self._model.get_submodule(".".join(parts)), nn.ModuleList | nn.ModuleDict):
            parts = parts[:-1]
        return self._model.get_submodule(".".join(parts))
