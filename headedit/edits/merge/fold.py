"""The result of a merge, W' = W·diag(1 + g_m·m) and b' = b + W·(g_a·a) at every site; the model is not changed.

With the edit of JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), z' = (1 + g_m·m) ⊙ z + g_a·a, the projection
gives W·z' + b = W'·z + b'. A gate in front of the site changes nothing: the edit acts on the projection's input.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from headedit.edits.adapter import Adapter, weighted_sum
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.merge.projection import merged_tensors, weight_owners, why_not_mergeable
from headedit.edits.positions import check_everywhere
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.io.bars import tqdm
from headedit.specs import HeadSite


@dataclass(frozen=True)
class FoldedProjection:
    """The new weight of one site's module, and its new bias where the edit has an offset.

    Fields:
        site: the site.
        weight: in the shape and dtype of the module's weight.
        bias: [out]; None where the offset is zero, so that the bias stays as it is.
    """

    site: HeadSite
    weight: Tensor
    bias: Tensor | None

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(torch.isfinite(t).all()) for t in (self.weight, self.bias) if t is not None)


def adapter_to_merge(edits: AdapterSet, adapter_names: list[str] | None) -> Adapter:
    """The adapter of some names, their sum where there are several; the active one for None.

    Raises:
        HeadEditError: a name is not known, the list is empty, or the adapters edit other sites.
    """
    if adapter_names is None:
        return edits.module
    if not isinstance(adapter_names, list | tuple) or not adapter_names:
        raise HeadEditError(f"adapter_names: found {adapter_names!r}, expected a list of names.")
    adapters = [edits[name] for name in dict.fromkeys(adapter_names)]
    return adapters[0] if len(adapters) == 1 else weighted_sum([(1.0, adapter) for adapter in adapters])


@torch.no_grad()
def fold(edits: AdapterSet, adapter: Adapter, *, progressbar: bool = False) -> list[FoldedProjection]:
    """The weights and biases that hold the effective values of an adapter, one per site; nothing is written.

    Computed in float32, or in the weight's dtype where that is wider, and rounded once. A site whose edit changes
    nothing is left out.

    Args:
        edits: the adapter set of the model.
        adapter: the edits to fold.
        progressbar: show a bar over the sites.

    Raises:
        HeadEditError: the edits are detached, act on some tokens alone, or a site's module cannot hold a scale in its
            weight; the message says why.
    """
    check_attached(edits)
    check_everywhere(adapter.config.positions, "they cannot be merged")
    owners = weight_owners(edits.model)
    folded = []
    pairs: Iterable[tuple[HeadSite, SiteEdit]] = adapter.pairs()
    for site, edit in tqdm(pairs, desc="merging", total=len(adapter.sites), unit="site", disable=not progressbar):
        scale, offset = wide_scale_and_offset(edit)
        if bool((scale == 1).all()) and not bool(offset.any()):
            continue
        reason = why_not_mergeable(edits.model, site, owners)
        if reason is not None:
            raise HeadEditError(f"{site.path} cannot be merged: {reason}")
        folded.append(_fold(site, scale, offset))
    return folded


@torch.no_grad()
def wide_scale_and_offset(edit: SiteEdit) -> tuple[Tensor, Tensor]:
    """The factor and the offset of a site in eval mode, each [heads * head_dim], in float64."""
    scale, offset = edit.scale_and_offset()
    return scale.double(), offset.double()


def check_attached(edits: AdapterSet) -> None:
    """Raises a HeadEditError where the edits were detached, so that there is no model to fold them into."""
    if not edits.attached:
        raise HeadEditError("These edits are detached, so there is nothing to merge them into; load them again.")


def check_finite(folded: list[FoldedProjection]) -> None:
    """Raises a HeadEditError where a result is NaN or infinite."""
    for new in folded:
        if not new.finite:
            raise HeadEditError(f"{new.site.path}: merged, its weights would hold NaN or infinity; nothing was merged.")


def _fold(site: HeadSite, scale: Tensor, offset: Tensor) -> FoldedProjection:
    weight, bias = site.module._parameters["weight"], site.module._parameters.get("bias")
    assert weight is not None
    new_weight, new_bias = merged_tensors(
        weight.data, None if bias is None else bias.data, scale, offset, conv=isinstance(site.module, Conv1D)
    )
    return FoldedProjection(site, new_weight, new_bias)
