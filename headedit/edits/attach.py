"""Puts edits on a model, new or saved: finds the sites, makes the parameters, registers the hooks."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from headedit.edits.adapter import Adapter
from headedit.edits.arguments import naming_contents, saved_edits, spec_and_config
from headedit.edits.attached import handle_of
from headedit.edits.config import EditConfig
from headedit.edits.drafted import proved_draft
from headedit.edits.edited_sites import edited_sites
from headedit.edits.files.storage import read_with_spec
from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.engines import check_hooks_are_called
from headedit.hf.models import check_no_other_task, expect_model
from headedit.io.describe import describe
from headedit.specs import MODULE_NAME, Spec, find_spec
from headedit.specs.registry import has_spec


def attach(
    model: nn.Module,
    spec: "str | PathLike[str] | Spec | EditConfig | None" = None,
    config: EditConfig | Mapping[str, Any] | None = None,
    *,
    draft: bool = False,
) -> HeadEdits:
    """Hooks edits into a causal LM, in place, and freezes everything else.

    A fresh edit is the identity, bit for bit in eval mode, unless ``config.init_std`` asks for noise. The
    parameters are float32, whatever the model's dtype, and a submodule ``headedit`` of the model, so that
    optimisers, ``Trainer``, ``state_dict`` and ``.to()`` see them. ``detach`` undoes all of it.

    >>> from headedit.demo import MODEL_FOLDER  # a tiny model that comes with headedit; any causal LM will do
    >>> model = headedit.load_model(str(MODEL_FOLDER), device="cpu")
    >>> edits = headedit.attach(model, config={"layers": "1:3"})
    >>> edits.count_open()["any"]  # open heads, of how many
    (16, 16)
    >>> edits.set_head(1, 5, scale=0.0)  # an edit by hand: head 5 of layer 1 is switched off
    >>> edits.detach() is model
    True

    Args:
        model: a transformers causal LM in any dtype, quantized or sharded, PEFT's adapters on it or not. Of one that
            ``torch.compile`` made, the module inside is edited, and both act as edited. A model without a head, as
            ``AutoModel`` loads it, can be looked at but not trained; a classifier is refused.
        spec: a spec, or the path of a spec file; by default found by ``config.model_type``. A config may stand here.
        config: the shape of the edits, or a mapping of its fields; by default an offset and a scale with a gate each,
            on every head.
        draft: where no spec is given and none knows the model's type, draft one from a traced forward pass, prove it
            on this model, print it with its certificate, and go on. It costs some forward passes for each head. Only
            attention heads are drafted; whether a gate stands before the site and how an offset merges is not looked
            at. Saved edits carry the spec, so that ``load`` needs no draft.

    Returns:
        The handle. The model is the same object.

    Raises:
        HeadEditError: no spec describes the model, or the drafted one is not proved on it; the spec does not fit it or
            refuses it; the config asks for layers or sites that the model lacks; the model has edits already; an
            engine runs it without calling hooks; or what was given is not a model, a spec or a config.
    """
    base = _base_model(model)
    found, shape = spec_and_config(spec, config)
    if not isinstance(draft, bool):
        raise HeadEditError(f"draft: found {describe(draft)}, expected True or False.")
    known = proved_draft(base) if draft and found is None and not has_spec(base) else find_spec(base, found)
    return HeadEdits(base, known, Adapter(edited_sites(base, known, shape), shape))


def load(
    model: nn.Module,
    path: "str | PathLike[str]",
    *,
    spec: "str | PathLike[str] | Spec | None" = None,
    revision: str | None = None,
) -> HeadEdits:
    """Attaches saved edits to a base model that has none.

    >>> from headedit.demo import MODEL_FOLDER  # a tiny model that comes with headedit; any causal LM will do
    >>> model = headedit.load_model(str(MODEL_FOLDER), device="cpu")
    >>> edits = headedit.attach(model)
    >>> edits.set_head(1, 5, scale=0.0)
    >>> edits.save_pretrained("switched-off")
    >>> model = edits.detach()
    >>> edits = headedit.load(model, "switched-off")
    >>> edits.gates().scale[1, 5].item()
    1.0

    Args:
        model: the base model, without edits.
        path: a folder that ``save_pretrained`` wrote, or one of the two files in it; a folder that the
            ``save_pretrained`` of a model with edits or a Trainer wrote, of which the active adapter is read; or the
            id of a repository of edits on the Hugging Face hub.
        spec: a spec or spec file to use; by default the registry's, or else the one saved with the edits.
        revision: the revision of a hub repository.

    Returns:
        The handle; the model's logits are those of the model that was saved, bit for bit; of edits that were saved
        hardened, those of the model after ``harden()``, with frozen gates.

    Raises:
        HeadEditError: nothing is found, a file is damaged, an engine runs the model without calling hooks, or the
            edits were made for another model, in which case the message lists the differences.
    """
    if isinstance(path, nn.Module):
        raise HeadEditError("The model comes first, then the folder: headedit.load(model, path).")
    base = _base_model(model)
    folder = saved_edits(path)
    with naming_contents(folder):
        return HeadEdits(base, *read_with_spec(base, spec, folder, revision))


def handle(model: nn.Module) -> HeadEdits:
    """The handle of the edits on a model, or on the model inside a wrapper such as PEFT's.

    Raises:
        HeadEditError: the model has no edits.
    """
    if isinstance(model, HeadEdits):
        return model
    if not isinstance(model, nn.Module):
        raise HeadEditError(f"Expected a model that carries edits, found {describe(model)}.")
    found = _found_handle(model)
    if found is None:
        raise HeadEditError(f"This {type(model).__name__} has no edits; headedit.attach(model) puts some on it.")
    return found


def _base_model(given: Any) -> nn.Module:
    """The model to put edits on.

    Raises:
        HeadEditError: it is none, carries edits already, is not a language model, or calls no hooks.
    """
    if isinstance(given, HeadEdits):
        raise HeadEditError(
            "Found the handle of edits, which are on its model already: edits.add_adapter(name) adds more of them "
            "under a name, and edits.load_adapter(path, name) saved ones. edits.detach() takes them off."
        )
    if isinstance(given, EditConfig | Spec | Adapter):  # an Adapter is an nn.Module too
        raise HeadEditError(
            f"Expected a transformers model, found {describe(given)}. The model comes first: headedit.attach(model, "
            "config=...)."
        )
    model = expect_model(given)
    if any(MODULE_NAME in module._modules for module in model.modules()):
        raise HeadEditError(
            f"This {type(model).__name__} has edits attached already; headedit.handle(model) gives their handle: "
            "its load_adapter(path, name) and add_adapter(name) put more edits on, and its detach() takes them off."
        )
    check_no_other_task(model)
    check_hooks_are_called(model)
    return model


def _found_handle(model: nn.Module) -> HeadEdits | None:
    found = (handle_of(module) for module in model.modules())
    return next((edits for edits in found if isinstance(edits, HeadEdits)), None)
