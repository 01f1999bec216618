"""The moment that chat templates are told, so that a conversation has the same tokens on another day.

A template may write today's date (``strftime_now``). Inside a ``Clock`` every template is told one moment, which a run
keeps, and uses again when it is resumed and when its edits are evaluated.
"""

from contextvars import ContextVar
from datetime import datetime

from headedit.errors import HeadEditError


class Clock:
    """A context in which templates are told one moment.

    Args:
        date: the moment, in ISO format; None for the present one.

    Fields:
        asked: whether a template asked for it.
    """

    def __init__(self, date: str | None = None) -> None:
        self.moment = datetime.now().replace(microsecond=0) if date is None else read_date(date)
        self.asked = False
        self._before: list[Clock | None] = []

    @property
    def date(self) -> str | None:
        """The moment in ISO format, if a template asked for it."""
        return self.moment.isoformat() if self.asked else None

    def __enter__(self) -> "Clock":
        """Every template is told this moment."""
        self._before.append(_clock.get())
        _clock.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Templates are told what they were before."""
        _clock.set(self._before.pop())


_clock: ContextVar[Clock | None] = ContextVar("clock of chat templates", default=None)


def moment() -> datetime:
    """The moment that a template is told: that of the clock, or the present one outside any."""
    clock = _clock.get()
    if clock is None:
        return datetime.now()
    clock.asked = True
    return clock.moment


def read_date(date: str) -> datetime:
    """Reads a date, or date and time, in ISO format.

    Raises:
        HeadEditError: it is none.
    """
    try:
        return datetime.fromisoformat(date)
    except ValueError:
        raise HeadEditError(f"date: found '{date}', expected a date such as 2026-03-01.") from None
