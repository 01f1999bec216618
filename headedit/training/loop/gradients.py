"""Whether the backward pass of a step reached the edits."""

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.config import drops_layers
from headedit.io.describe import first_names


def check_gradients(edits: HeadEdits) -> None:
    """Raises a HeadEditError where the vectors of a site have no gradient after a backward pass.

    Where layers are dropped at random, one site with a gradient is enough.
    """
    trained = [
        (site, [vector for vector in edit.vectors.parameters() if vector.requires_grad])
        for site, edit in edits.module.pairs()
        if not edit.idle
    ]
    without = [site.path for site, vectors in trained if any(vector.grad is None for vector in vectors)]
    if not without or (drops_layers(edits.model) and len(without) < len(trained)):
        return
    raise HeadEditError(
        f"After the first step the edits of {first_names(without)} have no gradient, so they would learn "
        "nothing: the loss does not depend on them. Either these modules are not called, as by a fused kernel or an "
        "engine that compiled the model before the edits were attached, or the loss is computed without them."
    )
