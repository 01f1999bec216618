"""Edits merged into a model in place, and taken out again bit for bit: the original tensors are kept.

The merged model is a plain checkpoint. Where a projection has no bias, a switch of the config gives it one; that
switch gives others one, too, which are zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headedit.edits.adapter_set import AdapterSet
from headedit.edits.handle import HeadEdits
from headedit.edits.merge.bias import lacks_bias, switches_for
from headedit.edits.merge.fold import Folded, check_attached, fold, obstacle, weight_owners
from headedit.errors import HeadEditError
from headedit.hf.config import decoder_config
from headedit.specs import HeadSite, Spec


@dataclass(frozen=True)
class _Merged:
    """What a merge changed, both ways."""

    tensors: list[tuple[nn.Parameter, Tensor, Tensor]]
    biases: list[tuple[nn.Module, nn.Parameter]]
    config: Any
    keys: dict[str, Any]

    def write(self) -> None:
        for parameter, _, merged in self.tensors:
            parameter.data = merged
        for module, bias in self.biases:
            module._parameters["bias"] = bias
        for key in self.keys:
            setattr(self.config, key, True)

    def restore(self) -> None:
        for parameter, original, _ in self.tensors:
            parameter.data = original
        for module, _ in self.biases:
            module._parameters["bias"] = None
        for key, value in self.keys.items():
            setattr(self.config, key, value)


_kept: "WeakKeyDictionary[AdapterSet, _Merged]" = WeakKeyDictionary()


def merge(edits: HeadEdits, safe_merge: bool = False) -> None:
    """Folds the edits, as they act in eval mode, into the model's weights; the hooks do nothing from then on.

    Args:
        edits: the handle.
        safe_merge: refuse results that are NaN or infinite.

    Raises:
        HeadEditError: the edits are merged already or detached, a weight is quantized, offloaded, shared or no
            projection's, an offset needs a bias that the model cannot have, or a result is not finite. The model is
            as it was then.
    """
    if is_merged(edits):
        raise HeadEditError("These edits are merged already; call unmerge_adapter() first to merge them anew.")
    folded = fold(edits)
    if safe_merge:
        check_finite(folded)
    biased = [f for f in folded if f.bias is not None]
    lacking = {f"{f.site.path}.bias": f.bias for f in biased if lacks_bias(f.site)}
    switches = switches_for(edits.model, edits.spec, [f.site for f in biased])
    if switches is None:
        raise HeadEditError(_no_bias(edits))
    tensors = [_change(f.site.module, "weight", f.weight) for f in folded]
    tensors += [
        _change(f.site.module, "bias", f.bias)
        for f in biased
        if f.bias is not None and f"{f.site.path}.bias" not in lacking
    ]
    biases = []
    for name, empty in switches.biases.items():
        module = edits.model.get_submodule(name.rpartition(".")[0])
        value = lacking.get(name)
        if value is None:
            like = module._parameters["weight"]
            assert like is not None
            value = torch.zeros(empty.shape, dtype=like.dtype, device=like.device)
        biases.append((module, nn.Parameter(value, requires_grad=False)))
    config = decoder_config(edits.model.config)
    before = {key: getattr(config, key) for key in switches.keys}
    merged = _Merged(tensors, biases, config, before)
    merged.write()
    edits.silence(True)
    _kept[edits] = merged


def unmerge(edits: HeadEdits) -> None:
    """Puts the original weights and config back, bit for bit; the hooks act again.

    Raises:
        HeadEditError: the edits are not merged.
    """
    merged = _kept.pop(edits, None)
    if merged is None:
        raise HeadEditError("These edits are not merged, so there is nothing to take out of the weights.")
    merged.restore()
    edits.silence(False)


def is_merged(edits: AdapterSet) -> bool:
    """Whether the edits are in the weights."""
    return edits in _kept


@contextmanager
def suspended(edits: AdapterSet) -> Iterator[nn.Module]:
    """A context in which the model has its original weights and config, whether the edits are merged or not."""
    merged = _kept.get(edits)
    if merged is not None:
        merged.restore()
    try:
        yield edits.model
    finally:
        if merged is not None:
            merged.write()


def merge_and_unload(edits: HeadEdits, safe_merge: bool = False) -> nn.Module:
    """Merges the edits and detaches them: a plain model, ready for ``save_pretrained``.

    Where the family's projection can have no bias and its spec names another type to re-home to, an edit with an
    offset gives a model of that type; the edited model is as it was before ``attach`` then.

    Returns:
        The model itself, or the re-homed one.

    Raises:
        HeadEditError: as for ``merge``; the edits stay attached then.
    """
    if not is_merged(edits):
        check_attached(edits)
        if _must_rehome(edits):
            from headedit.edits.merge.export import rehome

            plain = rehome(edits, safe_merge=safe_merge)
            edits.detach()
            return plain
        merge(edits, safe_merge)
    merged = _kept.pop(edits)
    edits.detach()
    for module, bias in merged.biases:
        weight = module._parameters["weight"]
        bias.requires_grad_(weight is not None and weight.requires_grad)
    return edits.model


def mergeable(model: nn.Module, sites: list[HeadSite], spec: Spec) -> tuple[bool, str]:
    """Whether edits at some sites, offsets among them, become part of a plain checkpoint, and how, or why not."""
    owners = weight_owners(model)
    for site in sites:
        reason = obstacle(model, site, owners)
        if reason is not None:
            return False, f"{site.path}: {reason}"
    switches = switches_for(model, spec, sites)
    if switches is not None:
        how = " and ".join(f"{key}=True" for key in switches.keys)
        return True, f"yes, by {how}" if how else "yes, into the bias that is there"
    if spec.merge is not None and spec.merge.rehome is not None:
        from headedit.edits.merge.export import hindrance

        reason = hindrance(model, spec.merge.rehome)
        return (True, f"yes, as {spec.merge.rehome}") if reason is None else (False, f"only a scale: {reason}")
    return False, f"only a scale: {_reason(spec)}"


def check_finite(folded: list[Folded]) -> None:
    """Raises a HeadEditError where a result is NaN or infinite."""
    for new in folded:
        if not new.finite:
            raise HeadEditError(f"{new.site.path}: merged, its weights would hold NaN or infinity; nothing was merged.")


def _must_rehome(edits: HeadEdits) -> bool:
    if edits.spec.merge is None or edits.spec.merge.rehome is None:
        return False
    return switches_for(edits.model, edits.spec, [f.site for f in fold(edits) if f.bias is not None]) is None


def _change(module: nn.Module, name: str, merged: Tensor) -> tuple[nn.Parameter, Tensor, Tensor]:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter, parameter.data, merged


def _reason(spec: Spec) -> str:
    return (spec.merge and spec.merge.never) or "no switch of its config gives the projection a bias"


def _no_bias(edits: HeadEdits) -> str:
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
        f"An offset cannot be merged into {name}: {_reason(edits.spec)}. Keep the edits beside the model "
        "(save_pretrained, and headedit.load on the base model), write them for PEFT with to_peft, or learn edits "
        "without an offset, EditConfig(vectors='scale'), which merge."
    )
