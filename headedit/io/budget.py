"""A budget for rendering a template: steps and characters, counted rather than timed, so that a run can be repeated.

A step is an iteration, a call, an operator or a value in a list; characters are those of every text that is made.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

LARGEST_NUMBER = 100_000
"""The largest width, count or repetition that a template may ask for."""

MOST_BITS = 10_000
"""Of a whole number that a template may make."""

_STEPS, _STEPS_PER_VALUE = 100_000, 1_000
_CHARACTERS, _CHARACTERS_PER_CHARACTER = 5_000_000, 200
_TEXTS, _LISTS = (str, bytes, bytearray), (list, tuple, set, frozenset)


class TooMuchWork(TemplateRuntimeError):
    """A template asks for more than its budget."""


class Budget:
    """What is left of the steps and characters of one rendering."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters

    def spend(self, steps: int, characters: int = 0) -> None:
        """Takes steps and characters.

        Raises:
            TooMuchWork: less is left.
        """
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise TooMuchWork("the template takes too many steps; shorten its loops, calls or lists")
        if self.characters < 0:
            raise TooMuchWork("the template makes too much text")

    def spend_on(self, value: Any, times: int = 1) -> None:
        """Takes what it costs to print, compare or copy a value some times, all that it contains included."""
        steps, characters = (1, len(value)) if type(value) is str else self.size(value)
        self.spend(times * steps, times * characters)

    def size(self, value: Any) -> tuple[int, int]:
        """Number of values in a value, itself included, and of their characters, counted no further than is left."""
        steps = characters = 0
        left = [value]
        while left and steps <= self.steps and characters <= self.characters:
            found = left.pop()
            steps += 1
            if isinstance(found, _TEXTS):
                characters += len(found)
            elif isinstance(found, int):
                if found.bit_length() > MOST_BITS:
                    raise TooMuchWork("the template makes too large a number")
                characters += 1 + found.bit_length() // 3
            elif isinstance(found, _LISTS):
                if len(found) > self.steps:
                    return len(found), characters
                left.extend(found)
            elif isinstance(found, dict):
                left.extend(found)
                left.extend(found.values())
            elif isinstance(found, Namespace):
                left.append(object.__getattribute__(found, "_Namespace__attrs"))
        return steps, characters


_current: ContextVar[Budget | None] = ContextVar("budget of a template", default=None)


@contextlib.contextmanager
def spending(value: Any = None) -> Iterator[Budget]:
    """A context in which templates have a budget; it grows with the data that they are given."""
    steps, characters = Budget(2**40, 2**40).size(value)
    budget = Budget(
        _STEPS + _STEPS_PER_VALUE * steps + characters, _CHARACTERS + _CHARACTERS_PER_CHARACTER * characters
    )
    before = _current.set(budget)
    try:
        yield budget
    finally:
        _current.reset(before)


def current() -> Budget:
    """The budget of the rendering in progress; a small one outside of any."""
    return _current.get() or Budget(_STEPS, _CHARACTERS)


def check_number(value: Any, largest: int = LARGEST_NUMBER) -> None:
    """Raises ``TooMuchWork`` for a number above a limit, or below its negative."""
    if isinstance(value, int | float) and not -largest <= value <= largest:
        raise TooMuchWork("the template asks for too large a number")
