"""The handle of edits that are to be trained or written, from what a user gives for it."""

from typing import Any

from torch import nn

from headedit.edits import HeadEdits, handle
from headedit.edits.adapter import Adapter
from headedit.errors import HeadEditError
from headedit.hf.models import check_has_head
from headedit.io.describe import describe

_FIT = "headedit.fit(edits, train, output_dir=...)"


def edits_to_train(given: Any) -> HeadEdits:
    """The handle of the edits to train; of a model that carries edits, their handle.

    Raises:
        HeadEditError: there are no edits, or their model has no language model's head.
    """
    edits = edits_of(given, _FIT)
    check_has_head(edits.model, "Training")
    return edits


def edits_of(given: Any, call: str) -> HeadEdits:
    """The handle that is given; of a model that carries edits, their handle.

    Args:
        given: what the user gave.
        call: the call that needs it, for messages.

    Raises:
        HeadEditError: there are no edits.
    """
    if isinstance(given, Adapter):
        raise HeadEditError(
            "edits: found the edits of one name, expected the handle, which has the model: "
            f"edits.set_adapter(name), then {call}."
        )
    if isinstance(given, HeadEdits):
        return given
    if isinstance(given, nn.Module):
        try:
            return handle(given)
        except HeadEditError:
            raise HeadEditError(
                f"edits: found {describe(given)}, a model without edits. Attach them first, and give their handle: "
                f"edits = headedit.attach(model), then {call}."
            ) from None
    raise HeadEditError(
        f"edits: found {describe(given)}, expected the handle that headedit.attach(model) or headedit.load(model, "
        f"path) returns: {call}."
    )
