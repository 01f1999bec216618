"""Edits merged into a model in place, and taken out again bit for bit: the original tensors are kept.

The merged model is a plain checkpoint. Where a projection has no bias, a flag of the config gives it one; that flag may
give other projections a bias too, which is zero.
"""

import torch
from torch import nn

from headedit.edits.adapter_set import AdapterSet
from headedit.edits.merge.bias import bias_flags_for, lacks_bias
from headedit.edits.merge.export import why_not_exportable
from headedit.edits.merge.fold import adapter_to_merge, check_finite, fold
from headedit.edits.merge.projection import weight_owners, why_not_mergeable
from headedit.edits.weight_change import WeightChange, tensor_change
from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.specs import HeadSite, Spec


def merge(
    edits: AdapterSet, adapter_names: list[str] | None = None, *, safe_merge: bool = False, progressbar: bool = False
) -> None:
    """Folds edits, with their effective values, into the model's weights; the hooks then do nothing.

    Args:
        edits: the adapter set.
        adapter_names: the adapters to merge, several as their sum; by default the active one.
        safe_merge: refuse results that are NaN or infinite.
        progressbar: show a bar over the sites.

    Raises:
        HeadEditError: the edits are merged, disabled, detached or act on some tokens alone, a thread is in a context
            such as ``route()``, a name is not known, a weight is quantized, offloaded, sharded, shared or not a
            projection's, an offset needs a bias that the model cannot have, or with ``safe_merge`` a result is not
            finite. The model is unchanged then.
    """
    if edits.merged is not None:
        raise HeadEditError(
            "These edits are merged already; call unmerge_adapter() first, after which they can be merged again."
        )
    check_not_disabled(edits)
    edits.refuse_contexts("the edits cannot be merged")
    folded = fold(edits, adapter_to_merge(edits, adapter_names), progressbar=progressbar)
    if safe_merge:
        check_finite(folded)
    biased = [f for f in folded if f.bias is not None]
    lacking = {f"{f.site.path}.bias": f.bias for f in biased if lacks_bias(f.site)}
    flags = bias_flags_for(edits.model, edits.spec, [f.site for f in biased])
    if flags is None:
        raise HeadEditError(_no_bias(edits))
    tensors = [tensor_change(f.site.module, "weight", f.weight) for f in folded]
    tensors += [
        tensor_change(f.site.module, "bias", f.bias)
        for f in biased
        if f.bias is not None and f"{f.site.path}.bias" not in lacking
    ]
    biases = []
    for name, empty in flags.biases.items():
        module = edits.model.get_submodule(name.rpartition(".")[0])
        value = lacking.get(name)
        if value is None:
            like = module._parameters["weight"]
            assert like is not None
            value = torch.zeros(empty.shape, dtype=like.dtype, device=like.device)
        biases.append((module, nn.Parameter(value, requires_grad=False)))
    config = text_config(edits.model.config)
    before = {key: getattr(config, key) for key in flags.keys}
    names = [edits.active_adapter] if adapter_names is None else list(dict.fromkeys(adapter_names))
    change = WeightChange(names, tensors, biases, config, before)
    edits.change_weights(change)


def unmerge(edits: AdapterSet) -> None:
    """Puts the original weights and config back, bit for bit; the hooks act again.

    Raises:
        HeadEditError: the edits are not merged.
    """
    if edits.merged is None:
        raise HeadEditError("These edits are not merged, so there is nothing to take out of the weights.")
    edits.change_weights(None)


def check_not_disabled(edits: AdapterSet) -> None:
    """Raises a HeadEditError where the edits are disabled, so that the weights must be those of the base model."""
    if edits.disabled:
        raise HeadEditError(
            "These edits are disabled, so merging would contradict that: leave disable_adapter(), or call "
            "enable_adapter_layers(), and merge then."
        )


def mergeable(model: nn.Module, sites: list[HeadSite], spec: Spec) -> tuple[bool, str]:
    """Whether edits at some sites, with offsets, become part of a plain checkpoint, and how, or why not."""
    owners = weight_owners(model)
    for site in sites:
        reason = why_not_mergeable(model, site, owners)
        if reason is not None:
            return False, f"{site.path}: {reason}"
    flags = bias_flags_for(model, spec, sites)
    if flags is not None:
        how = " and ".join(f"{key}=True" for key in flags.keys)
        return True, f"yes, by {how}" if how else "yes, into the bias that the projection has"
    if spec.merge is not None and spec.merge.rehome is not None:
        reason = why_not_exportable(model, spec.merge.rehome)
        return (True, f"yes, as {spec.merge.rehome}") if reason is None else (False, f"only a scale: {reason}")
    return False, f"only a scale: {_reason(spec)}"


def _reason(spec: Spec) -> str:
    return (spec.merge and spec.merge.never) or "no flag of its config gives the projection a bias"


def _no_bias(edits: AdapterSet) -> str:
    rule, name = edits.spec.merge, type(edits.model).__name__
    if hasattr(edits.model, "peft_config"):
        return (
            f"PEFT wraps parts of this {name}, so an offset cannot be merged. Merge that first: model = "
            "peft_model.merge_and_unload(); then load the edits."
        )
    if rule is not None and rule.rehome is not None:
        return (
            f"The projections of {name} can have no bias, so an offset cannot be merged in place. merge_and_unload() "
            f"gives the same model as a {rule.rehome}, which has one."
        )
    return (
        f"An offset cannot be merged into {name}: {_reason(edits.spec)}. Keep the edits next to the model "
        "(save_pretrained, and headedit.load on the base model), write them for PEFT with to_peft, or learn edits "
        "without an offset, EditConfig(vectors='scale'), which merge."
    )
