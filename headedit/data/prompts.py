"""Which tokens of the next passes are prompt, as code around them knows it: from labels, or from the prompts' lengths.

A loss takes its labels out of what it calls a model with, and a reader of options calls a model without any. What they
know is kept for the task or thread that runs the passes, and can be left in any order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class Known:
    """What a context says of the passes in it: one of the two.

    Fields:
        labels: the label of each token at its own place, -100 for those of prompts and padding, [batch, tokens].
        lengths: how many tokens each row's prompt has, without padding; a batch may hold each row several times, one
            after the other.
        owner: of whose passes this is said; None for those of any model.
        left: whether it was left in another context than it was entered in, so that it no longer counts.
    """

    labels: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    owner: object = None
    left: bool = False


@contextmanager
def known(entry: Known) -> Iterator[None]:
    """A context in which something is known of the passes."""
    token = _variable.set((*_variable.get(), entry))
    try:
        yield
    finally:
        rest = tuple(other for other in _variable.get() if other is not entry)
        try:
            _variable.reset(token)
        except ValueError:  # this is another context than the one that entered
            entry.left = True
        else:
            if _variable.get() != rest:  # others were entered since, or left before
                _variable.set(rest)


@contextmanager
def labelled(labels: Tensor | None) -> Iterator[None]:
    """A context in which the passes are of a batch with these labels, [batch, tokens]; None for no such context."""
    if labels is None:
        yield
        return
    with known(Known(labels=labels)):
        yield


@contextmanager
def prompts_of(lengths: Sequence[int]) -> Iterator[None]:
    """A context in which the rows of passes have prompts of these lengths, in tokens without padding."""
    with known(Known(lengths=tuple(lengths))):
        yield


def known_labels() -> Tensor | None:
    """The labels of the innermost context that has some."""
    return next((entry.labels for entry in _entries() if entry.labels is not None), None)


def known_lengths(owner: object) -> tuple[int, ...] | None:
    """The prompts' lengths of the innermost context that has some, of an owner's passes or of any."""
    return next((e.lengths for e in _entries() if e.lengths is not None and e.owner in (None, owner)), None)


def _entries() -> Iterator[Known]:
    return (entry for entry in reversed(_variable.get()) if not entry.left)


_variable: ContextVar[tuple[Known, ...]] = ContextVar("headedit.prompts", default=())
