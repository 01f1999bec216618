"""How a handle is shown in a notebook: the package registers the view, so that ``edits`` need not import plots."""

from collections.abc import Callable
from typing import Any

_view: list[Callable[[Any], str]] = []


def register_html_view(view: Callable[[Any], str]) -> None:
    """Registers the function that gives HTML for a handle, in place of any earlier one."""
    _view[:] = [view]


def html_of(edits: Any) -> str | None:
    """The HTML of a handle; None where no view is registered, and then a notebook shows the text."""
    return _view[0](edits) if _view else None
