"""Estimates for all heads at once: one pass forward and back through the edited model, to first order.

With L the loss of the edited run, z a head's output, z' what its edit makes of it and z⁰ its output in the base run,

    attribution = Σ ⟨∂L/∂z', z − z'⟩        patch = Σ ⟨∂L/∂z', z⁰ − z'⟩        contribution = √ mean ‖z' − z‖²

where sums run over the tokens of an example and means over all tokens. The first estimates what ``leave_one_out`` and
the second what ``patch`` into the edited run measure (attribution patching: Nanda 2023; Syed, Rager, Conmy, BlackboxNLP
2024, arXiv 2310.10348). Both are exact as the edits become small, and say little at the end of a training, where the
gradient is close to zero; ``integrate`` takes it all the way from the base model instead.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from headedit.data.batches import batches
from headedit.data.encoding import encode_all
from headedit.data.losses import mean_losses
from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.interpret.evidence.heads import Head, edited_heads
from headedit.specs import HeadSite


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadEstimates:
    """What one pass says of every edited head.

    Fields:
        heads: all edited heads, open or not.
        loss, base_loss: of the edited and of the base model, mean over the examples, in nats a token.
        attribution: estimate of how much the loss rises without the head's edit, [heads].
        patch: estimate of how much it rises with the head's output in the base run in its place, [heads]; NaN where a
            module is not given every token once.
        contribution: root mean square, over tokens, of the length of what the edit adds to the head's output, [heads].
        share: contribution over the root mean square of the output's own length, [heads]; not finite for a silent head.
        cosine: mean over tokens of the cosine between the output before and after the edit, [heads].
        rms: of each head, the root mean square over tokens of each coordinate of its output, [head_dim].
    """

    heads: list[Head] = field(repr=False)
    loss: float
    base_loss: float
    attribution: Tensor = field(repr=False)
    patch: Tensor = field(repr=False)
    contribution: Tensor = field(repr=False)
    share: Tensor = field(repr=False)
    cosine: Tensor = field(repr=False)
    rms: list[Tensor] = field(repr=False)


def attribute(
    edits: HeadEdits, data: Iterable[Any], *, tokenizer: Any = None, batch_size: int = 16, progress: bool = True
) -> HeadEstimates:
    """Estimates of the effect of every head, and the size of its edit, in eval mode.

    It costs a pass forward and back, and one forward through the base model.

    Args:
        edits: the handle of the edited model; not changed, and its gradients neither.
        data: examples of any form that ``headedit.fit`` takes.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        batch_size: examples a batch.
        progress: show a bar.

    Raises:
        HeadEditError: the edits are detached or merged, there are no examples, or one cannot be used.
    """
    heads, rows, model = edited_heads(edits), encode_all(data, tokenizer, edits.model), edits.model
    sites = list({head.site.path: head.site for head in heads}.values())
    sums = {site.path: _Sums(site) for site in sites}
    loss = base_loss = 0.0
    with evaluating(model):
        for _, inputs, labels in batches(model, rows, batch_size, what="attribution", progress=progress, passes=3):
            with torch.no_grad(), edits.disable_adapter(), _kept(model, sites, "before") as base:
                base_loss += mean_losses(model(**inputs).logits, labels).sum().item()
            total, passed = _gradients(model, sites, inputs, labels)
            loss += total
            for path, (before, after, slopes) in passed.items():
                sums[path].add(before, after, base[path], slopes, inputs["attention_mask"])
    by_site = {path: found.scores(len(rows)) for path, found in sums.items()}
    return HeadEstimates(
        heads=heads,
        loss=loss / len(rows),
        base_loss=base_loss / len(rows),
        **{
            name: torch.stack([by_site[head.site.path][name][head.index] for head in heads])
            for name in ("attribution", "patch", "contribution", "share", "cosine")
        },
        rms=[by_site[head.site.path]["rms"][head.index] for head in heads],
    )


def integrate(
    edits: HeadEdits,
    data: Iterable[Any],
    *,
    tokenizer: Any = None,
    steps: int = 8,
    batch_size: int = 16,
    progress: bool = True,
) -> Tensor:
    """The rise of the loss from the edited to the base model, shared out among the edited heads: integrated gradients.

    ∫₀¹ Σ ⟨∂L/∂z', (z − z') / t⟩ dt where all edits act at strength t (Sundararajan, Taly, Yan, ICML 2017, arXiv
    1703.01365), by the midpoint rule. With more steps the shares add up to ``base_loss`` − ``loss``. At the end of a
    training the gradient at t = 1, which ``attribute`` takes, is close to zero; this one is not.

    Args:
        edits: the handle of the edited model; not changed.
        data, tokenizer, batch_size, progress: as for ``attribute``.
        steps: number of strengths, each a pass forward and back.

    Returns:
        [heads], in the order of ``HeadEstimates.heads``.

    Raises:
        HeadEditError: ``steps`` is below 1; or as for ``attribute``.
    """
    if steps < 1:
        raise HeadEditError(f"steps: found {steps}, expected 1 or more.")
    heads, rows, model = edited_heads(edits), encode_all(data, tokenizer, edits.model), edits.model
    sites = list({head.site.path: head.site for head in heads}.values())
    shares = {site.path: torch.zeros(site.heads) for site in sites}
    strength, followed = edits.strength, False
    try:
        with evaluating(model):
            for _, inputs, labels in batches(
                model, rows, batch_size, what="integrating", progress=progress, passes=steps
            ):
                if not followed:
                    with torch.no_grad(), edits.disable_adapter():
                        model(**inputs)  # the edits' own hooks move behind a module that was wrapped since
                    followed = True
                for step in range(steps):
                    t = (step + 0.5) / steps
                    edits.strength = strength * t
                    passed = _gradients(model, sites, inputs, labels)[1]
                    for site in sites:
                        for z, edited, slope in zip(*passed[site.path], strict=True):
                            share = by_head(slope, site) * (by_head(z, site) - by_head(edited, site))
                            shares[site.path] += share.sum((0, 2)).cpu() / (t * steps)
    finally:
        edits.strength = strength
    return torch.stack([shares[head.site.path][head.index] for head in heads]) / len(rows)


def _gradients(
    model: nn.Module, sites: Sequence[HeadSite], inputs: dict[str, Any], labels: Tensor
) -> tuple[float, dict[str, tuple[list[Tensor], list[Tensor], list[Tensor]]]]:
    """The summed loss of a batch; and by the site's path what its module is given before the edits and after them, and
    the gradient of that loss by the latter, each time that it runs."""
    with torch.enable_grad(), _kept(model, sites, "before") as before, _kept(model, sites, "after") as after:
        total = mean_losses(model(**inputs).logits, labels).sum()
    paths = [site.path for site in sites]
    given = [z for path in paths for z in after[path]]
    slopes = iter(torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True))
    detached = {
        path: (
            [z.detach() for z in before[path]],
            [z.detach() for z in after[path]],
            [next(slopes) for _ in after[path]],
        )
        for path in paths
    }
    return total.item(), detached


class _Sums:
    """What is summed over the batches for the heads of one site."""

    def __init__(self, site: HeadSite) -> None:
        self.site = site
        self.attribution, self.patch, self.added, self.cosine = torch.zeros(4, site.heads)
        self.own = torch.zeros(site.heads, site.head_dim)
        self.tokens = 0

    def add(
        self,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        base: Sequence[Tensor],
        slopes: Sequence[Tensor],
        mask: Tensor,
    ) -> None:
        """Takes in a batch: the site's input each time that its module ran, and the loss's gradient there."""
        for z, edited, unedited, slope in zip(before, after, base, slopes, strict=True):
            z, edited, unedited, slope = (by_head(tensor, self.site) for tensor in (z, edited, unedited, slope))
            self.attribution += (slope * (z - edited)).sum((0, 2)).cpu()
            each_once = len(z) == len(unedited) == mask.numel()
            self.patch += (slope * (unedited - edited)).sum((0, 2)).cpu() if each_once else torch.nan
            if each_once:
                real = mask.flatten().bool().to(z.device)
                z, edited = z[real], edited[real]
            self.added += (edited - z).square().sum((0, 2)).cpu()
            self.own += z.square().sum(0).cpu()
            self.cosine += cosine_similarity(edited, z, dim=-1).sum(0).cpu()
            self.tokens += len(z)

    def scores(self, examples: int) -> dict[str, Tensor]:
        """What ``HeadEstimates`` holds, for the heads of the site."""
        return {
            "attribution": self.attribution / examples,
            "patch": self.patch / examples,
            "contribution": (self.added / self.tokens).sqrt(),
            "share": (self.added / self.own.sum(1)).sqrt(),
            "cosine": self.cosine / self.tokens,
            "rms": (self.own / self.tokens).sqrt(),
        }


def by_head(z: Tensor, site: HeadSite) -> Tensor:
    """What a site's module is given, [tokens, heads, head_dim], float32; also from [..., groups, width / groups]."""
    return z.float().reshape(-1, site.heads, site.head_dim)


@contextmanager
def _kept(
    model: nn.Module, sites: Sequence[HeadSite], when: Literal["before", "after"]
) -> Iterator[dict[str, list[Tensor]]]:
    """A context that keeps the inputs of the sites' modules by path, before or after the edits act.

    Those after the edits can be differentiated by.
    """
    kept: dict[str, list[Tensor]] = defaultdict(list)

    def keep(path: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        z = args[0]
        if when == "after" and not z.requires_grad:
            z = z.detach().requires_grad_()
        kept[path].append(z)
        return (z, *args[1:]) if z is not args[0] else None

    hooks = [
        model.get_submodule(site.path).register_forward_pre_hook(partial(keep, site.path), prepend=when == "before")
        for site in sites  # what stands there now, which PEFT may have wrapped
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
