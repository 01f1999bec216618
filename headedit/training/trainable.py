"""The handle of edits that are to be trained, on a model that has logits to train them by."""

from typing import Any

from torch import nn

from headedit.edits import HeadEdits, handle
from headedit.edits.adapter import Adapter
from headedit.errors import HeadEditError
from headedit.hf.models import check_has_head
from headedit.io.describe import describe


def edits_to_train(given: Any) -> HeadEdits:
    """The handle of the edits to train; of a model that carries edits, their handle.

    Raises:
        HeadEditError: there are no edits, or their model has no language model's head.
    """
    if isinstance(given, Adapter):
        raise HeadEditError(
            "edits: found the edits of one name, expected the handle, which has the model: "
            "edits.set_adapter(name), then headedit.fit(edits, train, ...)."
        )
    if isinstance(given, HeadEdits):
        edits = given
    elif isinstance(given, nn.Module):
        try:
            edits = handle(given)
        except HeadEditError:
            raise HeadEditError(
                f"edits: found {describe(given)}, a model without edits. Attach them first, and train their handle: "
                "edits = headedit.attach(model), then headedit.fit(edits, train, ...)."
            ) from None
    else:
        raise HeadEditError(
            f"edits: found {describe(given)}, expected the handle that headedit.attach(model) or headedit.load(model, "
            "path) returns: headedit.fit(edits, train, output_dir=...)."
        )
    check_has_head(edits.model, "Training")
    return edits
