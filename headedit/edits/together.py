"""The edits of all sites at once: looked at when a pass in eval mode begins, computed when training comes to the first.

A site's gates and vectors are small, so that what they cost is the number of operators and of steps of the interpreter,
and that is about the same for one site and for all.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch

from headedit.edits.kept import KeptTogether
from headedit.edits.site_edit import Line, SiteEdit, lines, uniform

_saving_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class Together:
    """What acts at the sites of the pass that is under way.

    In eval mode without gradients that is what each site keeps, taken when the pass begins. In training all sites are
    computed when the first one is called. A site is on its own where it cannot be taken with the others: while a graph
    is compiled, which fuses operators by itself; when a layer is called without the model around it; where it is
    offloaded; in eval mode with gradients; and within a checkpointed segment, which must draw its own gates once more
    when it is recomputed.
    """

    def __init__(self) -> None:
        self._edits: Sequence[SiteEdit] = ()
        self._in_eval_mode: Mapping[object, Line] = {}
        self._kept: KeptTogether[Mapping[object, Line]] = KeptTogether()
        self._state: Any = None
        self._lines: dict[SiteEdit, Line] | None = None

    def begin(self, acting: Iterable[object]) -> None:
        """Begins a pass over what is applied at the sites."""
        self.end()
        if torch.compiler.is_compiling():
            return
        edits = [edit for edit in acting if isinstance(edit, SiteEdit) and not edit.idle and _at_hand(edit)]
        still = [edit for edit in edits if not edit.training]
        if still and not torch.is_grad_enabled():
            self._in_eval_mode = self._kept.get(
                [edit.kept for edit in still],
                [p for edit in still for p in edit._parameters.values()],
                lambda: {edit: edit.line() for edit in still},
            )
        if _saving_hooks is not None:
            self._edits = [edit for edit in edits if edit.training]
            self._state = _state()

    def end(self) -> None:
        """Ends it, so that nothing of it is left."""
        self._edits, self._in_eval_mode, self._state, self._lines = (), {}, None, None

    def line(self, edit: object) -> Line | None:
        """The factor and offset of a site in this pass; None where it is to be computed by itself."""
        if torch.compiler.is_compiling():
            return None
        line = self._in_eval_mode.get(edit)
        if line is not None:
            return None if torch.is_grad_enabled() else line
        if not self._edits or not isinstance(edit, SiteEdit) or not edit.training or _state() != self._state:
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


def _at_hand(edit: SiteEdit) -> bool:
    """Whether its parameters are there between calls: the hook of an offloaded module fetches them for each."""
    return "_hf_hook" not in edit.__dict__


def _state() -> tuple[bool, Any]:
    """What differs between the model's own pass and a checkpointed segment of it, when it first runs."""
    return torch.is_grad_enabled(), _saving_hooks(True)
