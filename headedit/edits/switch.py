"""The pre-hook of one site: what it applies can be exchanged without a new hook, and without compiling anew."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Acting(Protocol):
    """What a switch can apply: the edit of a site, or another edit for each row of a batch."""

    @property
    def idle(self) -> bool:
        """Whether it leaves everything as it is."""
        ...

    @property
    def __call__(self) -> Callable[[Tensor], Tensor]:
        """Takes the input of a site's module, and gives it edited."""
        ...


class Switch:
    """The hook of a site.

    Fields:
        acting: what is applied to the input of the site's module; None for nothing.
    """

    def __init__(self) -> None:
        self.acting: Acting | None = None

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A forward pre-hook for the site's module."""
        if self.acting is None or self.acting.idle:
            return None
        return (self.acting(args[0]), *args[1:])
