"""The edits of all sites, computed at once when a training pass comes to the first of them.

A site's gates and vectors are small, so that what they cost is the number of operators, and that is the same for one
site and for all.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch

from headedit.edits.site import Line, SiteEdit, lines, uniform

_saving_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class Together:
    """What acts at the sites of the pass that is under way.

    A site is computed by itself, as it is called, where others cannot be computed along with it: in eval mode, where
    each is kept; while a graph is compiled, which fuses operators by itself; when a layer is called without the model
    around it; and within a checkpointed segment, which must draw its own gates once more when it is recomputed.
    """

    def __init__(self) -> None:
        self._edits: Sequence[SiteEdit] = ()
        self._state: Any = None
        self._lines: dict[SiteEdit, Line] | None = None

    def begin(self, acting: Iterable[object]) -> None:
        """Begins a pass over what is applied at the sites."""
        self.end()
        if not torch.compiler.is_compiling() and _saving_hooks is not None:
            self._edits = [edit for edit in acting if isinstance(edit, SiteEdit) and edit.training and not edit.idle]
            self._state = _state()

    def end(self) -> None:
        """Ends it, so that nothing of it is left."""
        self._edits, self._state, self._lines = (), None, None

    def line(self, edit: SiteEdit) -> Line | None:
        """The factor and offset of a site in this pass; None where it is to be computed by itself."""
        if torch.compiler.is_compiling() or not self._edits or _state() != self._state:
            return None
        if self._lines is None:
            self._lines = _together(self._edits)
        return self._lines.get(edit)


def _together(edits: Sequence[SiteEdit]) -> dict[SiteEdit, Line]:
    alike: dict[Hashable, list[SiteEdit]] = {}
    for edit in edits:
        alike.setdefault(edit.layout(), []).append(edit)
    drawn = uniform(edits)
    return {edit: line for group in alike.values() for edit, line in zip(group, lines(group, drawn), strict=True)}


def _state() -> tuple[bool, Any]:
    """What differs between the model's own pass and a checkpointed segment of it, when it first runs."""
    return torch.is_grad_enabled(), _saving_hooks(True)
