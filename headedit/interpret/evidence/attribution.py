"""Estimates for all heads at once: one forward and backward pass through the edited model, to first order.

With L the loss of the edited run, z a head's output, z' its output after the edit and z⁰ its output in the base run,

    attribution = Σ ⟨∂L/∂z', z − z'⟩        patch = Σ ⟨∂L/∂z', z⁰ − z'⟩        contribution = √ mean ‖z' − z‖²

where sums run over the tokens of an example and means over all tokens. The first estimates what ``leave_one_out`` and
the second what ``patch`` into the edited run measures (attribution patching: Nanda 2023; Syed, Rager, Conmy,
BlackboxNLP 2024, arXiv 2310.10348). Both become exact for small edits, and are unreliable at the end of a training,
where the gradient is close to zero; ``integrate`` averages the gradient over the way from the base model instead.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from headedit.data.batches import batches
from headedit.data.encoding import encode_all
from headedit.data.losses import mean_losses
from headedit.data.prompts import labelled
from headedit.edits import HeadEdits
from headedit.edits.values import one_or_more
from headedit.hf.modes import evaluating
from headedit.hf.sharding import refuse_tensor_parallel
from headedit.hf.tokenizers import as_tokenizer
from headedit.interpret.evidence.heads import Head, edited_heads
from headedit.specs import HeadSite


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadEstimates:
    """Estimates from one pass for every edited head.

    Fields:
        heads: all edited heads, open or not.
        loss, base_loss: of the edited and of the base model, mean over the examples, in nats per token.
        attribution: estimated rise of the loss without the head's edit, [heads].
        patch: estimated rise of the loss with the head's output of the base run in its place, [heads]; NaN where a
            module does not get every token exactly once.
        contribution: root mean square, over tokens, of the length of the change of the head's output, [heads].
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
    """Estimates the effect of every head's edit, and measures its size, in eval mode.

    It costs a forward and a backward pass, and a forward pass through the base model.

    Args:
        edits: the handle of the edited model; not changed, nor are its gradients.
        data: examples of any form that ``headedit.fit`` takes.
        tokenizer: the model's tokenizer, its name or its folder; None is enough where all examples hold ``input_ids``.
        batch_size: examples per batch.
        progress: show a bar.

    Raises:
        HeadEditError: the edits are detached or merged, there are no examples, or one cannot be used.
    """
    heads, rows, model = (
        edited_heads(edits),
        encode_all(data, as_tokenizer(tokenizer), edits.model, edits.module.date),
        edits.model,
    )
    sites = list({head.site.path: head.site for head in heads}.values())
    sums = {site.path: _Sums(site) for site in sites}
    loss = base_loss = 0.0
    with evaluating(model):
        for _, inputs, labels in batches(model, rows, batch_size, what="attribution", progress=progress, passes=3):
            with torch.no_grad(), edits.disable_adapter(), _recorded(model, sites, "before") as base:
                base_loss += mean_losses(model(**inputs).logits, labels).sum().item()
            total, passed = _gradients(model, sites, inputs, labels)
            loss += total
            for path, (before, after, gradients) in passed.items():
                sums[path].add(before, after, base[path], gradients, inputs["attention_mask"])
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
    """Divides the rise of the loss from the edited to the base model among the edited heads, by integrated gradients.

    ∫₀¹ Σ ⟨∂L/∂z', (z − z') / t⟩ dt with all edits at strength t (Sundararajan, Taly, Yan, ICML 2017, arXiv
    1703.01365), by the midpoint rule. With more steps the shares add up to ``base_loss`` − ``loss``. At the end of a
    training the gradient at t = 1, which ``attribute`` uses, is close to zero; the integral is not.

    Args:
        edits: the handle of the edited model; not changed.
        data: examples of any form that ``headedit.fit`` takes.
        tokenizer: the model's tokenizer, its name or its folder; None is enough where all examples hold ``input_ids``.
        steps: number of strengths, each a forward and a backward pass.
        batch_size: examples per batch.
        progress: show a bar.

    Returns:
        [heads], in the order of ``HeadEstimates.heads``.

    Raises:
        HeadEditError: ``steps`` is below 1; or as for ``attribute``.
    """
    one_or_more(steps, "steps")
    heads, rows, model = (
        edited_heads(edits),
        encode_all(data, as_tokenizer(tokenizer), edits.model, edits.module.date),
        edits.model,
    )
    sites = list({head.site.path: head.site for head in heads}.values())
    shares = {site.path: torch.zeros(site.heads) for site in sites}
    followed = False
    with evaluating(model):
        for _, inputs, labels in batches(model, rows, batch_size, what="integrating", progress=progress, passes=steps):
            if not followed:
                with torch.no_grad(), edits.disable_adapter():
                    model(**inputs)  # the edits' own hooks move to a module that was wrapped after attaching
                followed = True
            for step in range(steps):
                t = (step + 0.5) / steps
                with edits.at_strength(edits.strength * t):
                    passed = _gradients(model, sites, inputs, labels)[1]
                for site in sites:
                    for z, edited, gradient in zip(*passed[site.path], strict=True):
                        share = by_head(gradient, site) * (by_head(z, site) - by_head(edited, site))
                        shares[site.path] += share.sum((0, 2)).cpu() / (t * steps)
    return torch.stack([shares[head.site.path][head.index] for head in heads]) / len(rows)


def _gradients(
    model: nn.Module, sites: Sequence[HeadSite], inputs: dict[str, Any], labels: Tensor
) -> tuple[float, dict[str, tuple[list[Tensor], list[Tensor], list[Tensor]]]]:
    """The summed loss of a batch; and by the site's path the inputs of its module before and after the edits, and the
    gradient of that loss with respect to the latter, for each time that the module runs."""
    with torch.enable_grad(), _recorded(model, sites, "before") as before, _recorded(model, sites, "after") as after:
        with labelled(labels):
            logits = model(**inputs).logits
        total = mean_losses(logits, labels).sum()
    paths = [site.path for site in sites]
    given = [z for path in paths for z in after[path]]
    gradients = iter(torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True))
    detached = {
        path: (
            [z.detach() for z in before[path]],
            [z.detach() for z in after[path]],
            [next(gradients) for _ in after[path]],
        )
        for path in paths
    }
    return total.item(), detached


class _Sums:
    """Sums over the batches for the heads of one site."""

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
        gradients: Sequence[Tensor],
        mask: Tensor,
    ) -> None:
        """Adds a batch: the site's inputs for each time that its module ran, and the gradients of the loss there."""
        for z, edited, unedited, gradient in zip(before, after, base, gradients, strict=True):
            z, edited, unedited, gradient = (by_head(tensor, self.site) for tensor in (z, edited, unedited, gradient))
            self.attribution += (gradient * (z - edited)).sum((0, 2)).cpu()
            each_once = len(z) == len(unedited) == mask.numel()
            self.patch += (gradient * (unedited - edited)).sum((0, 2)).cpu() if each_once else torch.nan
            if each_once:
                real = mask.flatten().bool().to(z.device)
                z, edited = z[real], edited[real]
            self.added += (edited - z).square().sum((0, 2)).cpu()
            self.own += z.square().sum(0).cpu()
            self.cosine += cosine_similarity(edited, z, dim=-1).sum(0).cpu()
            self.tokens += len(z)

    def scores(self, examples: int) -> dict[str, Tensor]:
        """The fields of ``HeadEstimates`` for the heads of the site."""
        return {
            "attribution": self.attribution / examples,
            "patch": self.patch / examples,
            "contribution": (self.added / self.tokens).sqrt(),
            "share": (self.added / self.own.sum(1)).sqrt(),
            "cosine": self.cosine / self.tokens,
            "rms": (self.own / self.tokens).sqrt(),
        }


def by_head(z: Tensor, site: HeadSite) -> Tensor:
    """The input of a site's module as [tokens, heads, head_dim], float32; also from [..., groups, width / groups]."""
    return z.float().reshape(-1, site.heads, site.head_dim)


@contextmanager
def _recorded(
    model: nn.Module, sites: Sequence[HeadSite], when: Literal["before", "after"]
) -> Iterator[dict[str, list[Tensor]]]:
    """Records the inputs of the sites' modules by path while the context lasts, before or after the edits.

    Gradients with respect to those after the edits can be taken.
    """
    refuse_tensor_parallel(model, (site.module for site in sites), "Attribution to heads")
    recorded: dict[str, list[Tensor]] = defaultdict(list)

    def record(path: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        z = args[0]
        if when == "after" and not z.requires_grad:
            z = z.detach().requires_grad_()
        recorded[path].append(z)
        return (z, *args[1:]) if z is not args[0] else None

    with ExitStack() as stack:
        for site in sites:
            module = model.get_submodule(site.path)  # the current one, which PEFT may have wrapped
            hook = module.register_forward_pre_hook(partial(record, site.path), prepend=when == "before")
            stack.callback(hook.remove)
        yield recorded
