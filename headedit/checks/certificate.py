"""The certificate of a spec: whether heads are where it says on a live model, and whether editing them does no harm."""

from collections.abc import Iterable
from os import PathLike

from torch import Tensor, nn

from headedit.edits import EditConfig, attach
from headedit.edits.certificate import Certificate, certificate_of
from headedit.hf.models import expect_model
from headedit.specs import Spec


def certify(
    model: nn.Module,
    spec: "str | PathLike[str] | Spec | None" = None,
    *,
    kinds: Iterable[str] | None = None,
    input_ids: Tensor | None = None,
) -> Certificate:
    """Checks a spec on a live model, which is returned to its state.

    Args:
        model: a causal LM in float32, better a small one: every head costs a forward pass or two.
        spec: a spec, or the path of a spec file; by default the registry's.
        kinds: kinds of site to check; by default attention, or what there is.
        input_ids: one sequence of at least 6 token ids, [1, tokens]; by default a few random ones.

    Raises:
        HeadEditError: the spec does not fit the model at all, or the model does not run on the ids.
    """
    config = EditConfig(sites=None if kinds is None else list(kinds))
    base = expect_model(model)
    return certificate_of(base, lambda: attach(base, spec, config), input_ids=input_ids)
