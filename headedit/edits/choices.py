"""Which edits act in a pass: what the handle says, unless the task or thread that runs the pass asked for others.

An override belongs to the context (``contextvars``) that entered it: the thread, the asyncio task, and tasks started
inside it. Overrides can be left in any order, and in another context than they were entered in, as a generator is that
is closed elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, Protocol

from torch import Tensor

from headedit.edits.adapter import Adapter
from headedit.edits.affine import Heads
from headedit.edits.strength import Strength


class Effective(Heads, Protocol):
    """Whatever a hook can apply: the edit of a site, or another edit for each row of a batch."""

    @property
    def positions(self) -> str | tuple[str, ...]:
        """The tokens that it acts on: of all rows, or of each."""
        ...

    @property
    def idle(self) -> bool:
        """Whether it leaves everything as it is."""
        ...

    @property
    def __call__(self) -> Callable[..., Tensor]:
        """Takes the input of a site's module and returns it edited."""
        ...


class Choice:
    """The effective edits of a pass; it does not change.

    Fields:
        by_site: what each site applies, by the site's name; sites that are not in it apply nothing.
        adapter: the adapter that these are the edits of; None where they are of several, or of none.
        dial: the strength to apply the adapter with; None for its own.
        refusal: why no pass can be run; None where it can.
    """

    def __init__(
        self,
        by_site: Mapping[str, Effective],
        adapter: Adapter | None = None,
        dial: Strength | None = None,
        refusal: str | None = None,
    ) -> None:
        self.by_site, self.adapter, self.dial, self.refusal = by_site, adapter, dial, refusal

    @property
    def strength(self) -> Tensor | None:
        """The factor on the vectors of the adapter, a scalar; None for 1."""
        if self.adapter is None:
            return None
        return self.adapter.dial.factor if self.dial is None else self.dial.factor


def choice_of(adapter: Adapter) -> Choice:
    """The choice of one adapter, at its own strength."""
    return Choice({site.name: edit for site, edit in adapter.pairs()}, adapter)


NOTHING = Choice({})
"""The choice of no edits: the base model."""


class Override:
    """What a context asked for in place of the handle's choice.

    Args:
        what: the context manager that it was entered by, for messages.
        choice: the choice to make; None to change only the strength.
        adapter: the adapter whose strength is another one.
        dial: that strength.

    Fields:
        left: whether it was left in another context than it was entered in, so that it no longer counts anywhere.
    """

    def __init__(
        self,
        what: str,
        choice: Choice | None = None,
        adapter: Adapter | None = None,
        dial: Strength | None = None,
    ) -> None:
        self.what, self.choice, self.adapter, self.dial = what, choice, adapter, dial
        self.left = False


class Choices:
    """The handle's choice and the overrides of every context; ``new_choices`` makes one.

    Fields:
        model: the handle's choice. It is replaced as a whole, so that a pass sees the one or the other.
        off: whether ``disable_adapter_layers`` has disabled the edits, in every context.
        live: the overrides that are entered in any context.
        asked: the overrides of the running context, outermost first; anything but a tuple where there are none.
    """

    asked: object
    _variable: ContextVar[tuple[Override, ...]]

    def __init__(self) -> None:
        self.model = NOTHING
        self.off = False
        self.live: set[Override] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return new_choices, (), {"model": self.model, "off": self.off}  # a copy is in no context

    def now(self) -> Choice:
        """The choice of a pass that begins now, in this context."""
        if self.off:
            return NOTHING
        choice, asked = self.model, self.asked
        if isinstance(asked, tuple):
            override: Override
            for override in asked:
                if override.left:
                    continue
                if override.choice is NOTHING:
                    return NOTHING  # whatever is asked for within: the base model, as PEFT has it
                if override.choice is not None:
                    choice = override.choice
                elif choice.adapter is override.adapter:
                    choice = Choice(choice.by_site, choice.adapter, override.dial, choice.refusal)
        return choice

    def overrides(self) -> list[Override]:
        """The overrides of the running context, outermost first."""
        return [override for override in self._variable.get(()) if not override.left]

    @contextmanager
    def entered(self, override: Override) -> Iterator[None]:
        """A context in which an override holds."""
        token = self._variable.set((*self._variable.get(()), override))
        self.live.add(override)
        try:
            yield
        finally:
            self.live.discard(override)
            self._leave(override, token)

    def _leave(self, override: Override, token: "Token[tuple[Override, ...]]") -> None:
        rest = tuple(other for other in self._variable.get(()) if other is not override)
        try:
            self._variable.reset(token)
        except ValueError:  # this is another context than the one that entered
            override.left = True
            return
        if self._variable.get(()) != rest:  # others were entered since, or left before
            self._variable.set(rest)


def new_choices() -> Choices:
    """A ``Choices`` with a context variable of its own.

    The compiler of torch cannot trace ``ContextVar.get``, but looks up properties that are defined in C at each call
    and guards on what they give. So ``asked`` is such a property, in a class for each variable; where the variable is
    not set, it gives the argument of ``get``, which is the object itself.
    """
    variable: ContextVar[tuple[Override, ...]] = ContextVar("headedit")
    kind = type("Choices", (Choices,), {"asked": property(variable.get), "_variable": variable})
    made: Choices = kind()
    return made
