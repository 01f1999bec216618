"""The spec of a model whose type has none: drafted from a traced forward pass and proved on the model itself."""

from torch import nn

from headedit.edits.adapter import Adapter
from headedit.edits.certificate import certificate_of
from headedit.edits.config import EditConfig
from headedit.edits.edited_sites import edited_sites
from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.specs import Spec
from headedit.specs.draft import draft_spec
from headedit.specs.registry import model_type_of

_SHOWN = 3  # problems that the message lists


def proved_draft(model: nn.Module) -> Spec:
    """Drafts a spec, proves it on the model, and prints both the spec and its certificate.

    It costs some forward passes for each head, and a backward pass or two; the model is returned to its state.

    Args:
        model: a live causal LM without edits, of a type that no spec knows.

    Raises:
        HeadEditError: the model's weights hold no values, nothing can be drafted, or the draft is not proved.
    """
    model_type = model_type_of(model)
    unknown = f"No spec knows the model type '{model_type}'"
    if any(p.is_meta for p in model.parameters()) and not hasattr(model, "hf_device_map"):
        raise HeadEditError(
            f"{unknown}, and none can be proved on weights that are on the meta device and hold no values: load them "
            "before headedit.attach(model, draft=True)."
        )
    try:
        drafted = draft_spec(model)
    except HeadEditError as error:
        raise HeadEditError(f"{unknown}, and none can be drafted. {error}") from error
    problems = [f"{proof.path}: {problem}" for proof in drafted.proofs for problem in proof.problems]
    if drafted.ok:
        shape = EditConfig()
        certificate = certificate_of(
            model,
            lambda: HeadEdits(model, drafted.spec, Adapter(edited_sites(model, drafted.spec, shape), shape)),
            proofs=drafted.proofs,
        )
        problems = certificate.problems
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise HeadEditError(
            f"{unknown}, and the drafted one is not proved on this model, so nothing is attached. "
            f"{' '.join(problems[:_SHOWN])}{more} Write the draft with 'headedit spec draft MODEL --force --output "
            f"{model_type}.yaml', correct it by hand, prove it with 'headedit spec check MODEL --spec "
            f"{model_type}.yaml', and give it: headedit.attach(model, spec='{model_type}.yaml')."
        )
    print(f"{drafted.yaml}\n{certificate}")
    return drafted.spec
