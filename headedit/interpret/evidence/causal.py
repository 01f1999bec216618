"""Effects of heads by intervention: switch off one head's edit, or copy one head's output from one run to another.

Leave one out: the loss of the edited model without the edit of one head. Patching (Vig et al., NeurIPS 2020, arXiv
2004.12265; Zhang and Nanda, ICLR 2024, arXiv 2309.16042): the head's output in the edited run is put into the base
run, which shows what it is sufficient for, or its output in the base run into the edited run, which shows what it is
necessary for. All passes run through nnsight.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from headedit.data.batches import batches
from headedit.data.encoding import encode_all
from headedit.data.losses import mean_losses
from headedit.data.prompts import labelled
from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.tokenizers import as_tokenizer
from headedit.interpret.evidence.heads import Choice, Head, edited_heads, switched_off
from headedit.interpret.evidence.tracing import traces


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadEffects:
    """The change of the loss by an intervention on one head at a time, in nats per token.

    Fields:
        heads: the heads.
        before: loss of each example without the intervention, [examples].
        after: loss of each example with the intervention on each head, [heads, examples].
    """

    heads: list[Head] = field(repr=False)
    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)

    @property
    def effects(self) -> Tensor:
        """The rise of the loss, [heads]; negative where it falls."""
        found: Tensor = (self.after - self.before).mean(1)
        return found

    @property
    def errors(self) -> Tensor:
        """Standard error of each effect over the examples, [heads]; NaN with one example."""
        rises, examples = self.after - self.before, len(self.before)
        spread: Tensor = (rises - rises.mean(1, keepdim=True)).square().sum(1) / (examples - 1)
        return (spread / examples).sqrt()


def leave_one_out(
    edits: HeadEdits,
    data: Iterable[Any],
    *,
    tokenizer: Any = None,
    heads: Choice = "open",
    batch_size: int = 16,
    progress: bool = True,
) -> HeadEffects:
    """Measures the loss of the edited model with the edit of one head at a time switched off, in eval mode.

    It costs a forward pass for each head. A head whose gates are closed has an effect of 0.

    Args:
        edits: the handle of the edited model; not changed.
        data: examples of any form that ``headedit.fit`` takes.
        tokenizer: the model's tokenizer, its name or its folder; None is enough where all examples hold ``input_ids``.
        heads: ``open``, ``all``, or a list of (layer, head).
        batch_size: examples per batch.
        progress: show a bar.

    Raises:
        HeadEditError: nnsight is not installed, the edits are detached or merged, there is no such head or none is
            open, there are no examples, or one cannot be used.
    """
    chosen, rows, model = (
        edited_heads(edits, heads),
        encode_all(data, as_tokenizer(tokenizer), edits.model, edits.module.date),
        edits.model,
    )
    before, after = torch.zeros(len(rows)), torch.zeros(len(chosen), len(rows))
    with traces(model) as run:
        for numbers, inputs, labels in batches(
            model, rows, batch_size, what="switching heads off", progress=progress, passes=1 + len(chosen)
        ):
            with labelled(labels):
                before[numbers] = mean_losses(run.logits(inputs), labels).cpu()
            for i, head in enumerate(chosen):
                with switched_off(edits, [head]), labelled(labels):
                    after[i, numbers] = mean_losses(run.logits(inputs), labels).cpu()
    return HeadEffects(heads=chosen, before=before, after=after)


def patch(
    edits: HeadEdits,
    data: Iterable[Any],
    *,
    into: Literal["base", "edited"],
    tokenizer: Any = None,
    heads: Choice = "all",
    batch_size: int = 16,
    progress: bool = True,
) -> HeadEffects:
    """Measures the loss of one run with the output of one head at a time copied from the other, in eval mode.

    The output of a head without an edit differs in the edited run, too, if there is an edit below it.

    Args:
        edits: the handle of the edited model; not changed.
        data: as for ``leave_one_out``.
        into: ``base``: the edited head's output is put into the base run, and a negative effect means that the head
            helps. ``edited``: the base head's output is put into the edited run, and a positive effect means that.
        tokenizer: the model's tokenizer, its name or its folder; None is enough where all examples hold ``input_ids``.
        heads: ``open``, ``all``, or a list of (layer, head).
        batch_size: examples per batch.
        progress: show a bar.

    Raises:
        HeadEditError: as for ``leave_one_out``; or a head's module runs several times in a forward pass, or does not
            get every token exactly once.
    """
    if into not in ("base", "edited"):
        raise HeadEditError(f"into: found {into!r}, expected 'base' or 'edited'.")
    chosen, rows, model = (
        edited_heads(edits, heads),
        encode_all(data, as_tokenizer(tokenizer), edits.model, edits.module.date),
        edits.model,
    )
    sites = list({head.site.path: head.site for head in chosen}.values())
    before, after = torch.zeros(len(rows)), torch.zeros(len(chosen), len(rows))
    with traces(model) as run:
        for numbers, inputs, labels in batches(
            model,
            rows,
            batch_size,
            what=f"patching heads into the {into} run",
            progress=progress,
            passes=2 + len(chosen),
        ):
            with labelled(labels):
                edited_logits, edited = run.heads(inputs, sites)
            with edits.disable_adapter():
                base_logits, base = run.heads(inputs, sites)
            tokens = inputs["input_ids"].numel()
            if into == "edited":
                before[numbers] = mean_losses(edited_logits, labels).cpu()
                for i, head in enumerate(chosen):
                    with labelled(labels):
                        logits = run.logits(inputs, head.site, replaced(head, base[head.site.path], tokens))
                    after[i, numbers] = mean_losses(logits, labels).cpu()
            else:
                before[numbers] = mean_losses(base_logits, labels).cpu()
                with edits.disable_adapter():
                    for i, head in enumerate(chosen):
                        logits = run.logits(inputs, head.site, replaced(head, edited[head.site.path], tokens))
                        after[i, numbers] = mean_losses(logits, labels).cpu()
    return HeadEffects(heads=chosen, before=before, after=after)


def replaced(head: Head, source: Tensor, tokens: int) -> Callable[[Tensor], Tensor]:
    """A function that replaces one head in the input of a site's module by that of ``source``.

    Raises:
        HeadEditError: the module does not get every token exactly once, as where experts share the tokens.
    """
    site = head.site
    if source.numel() != tokens * site.width:
        raise HeadEditError(
            f"{site.path} gets an input of shape {tuple(source.shape)} for {tokens} tokens, so the tokens of two runs "
            "cannot be matched. Use leave_one_out."
        )

    def change(z: Tensor) -> Tensor:
        heads = z.reshape(-1, site.heads, site.head_dim).clone()  # also from [..., groups, width / groups]
        heads[:, head.index] = source.reshape(-1, site.heads, site.head_dim)[:, head.index]
        return heads.reshape(z.shape)

    return change
