"""The tokens that the edit of each head promotes and suppresses, and the size of its scale.

``weights`` reads an offset through the direct path to the unembedding, without data (the logit lens: nostalgebraist
2020; for directions in a head's output: Dar et al., ACL 2023, arXiv 2209.02535). ``measured`` switches on only the
edit of one head and takes the mean change of the logits over the tokens that predict a response: offset and scale,
directly and through later layers, with every norm as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headedit.data.batches import IGNORED, Encoded, batches
from headedit.data.encoding import encode_all
from headedit.data.prompts import labelled
from headedit.edits import HeadEdits
from headedit.edits.values import one_or_more
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.hf.tokenizers import as_tokenizer
from headedit.interpret.evidence.attribution import attribute
from headedit.interpret.evidence.direct_path import direct_path, unembedding_of
from headedit.interpret.evidence.heads import Choice, Head, edited_heads, switched_off
from headedit.interpret.naming import subtitle_of

_FEWEST = 0.9  # of the unembedding's rows: vocabularies are padded by a few per cent

Words = list[tuple[str, float]]
"""Tokens with the change of their logits, the strongest first."""


@dataclass(frozen=True)
class TokenChanges:
    """The tokens whose logits change most.

    Fields:
        promotes: tokens whose logit rises most above the mean over the vocabulary, with that rise.
        suppresses: tokens whose logit falls most below it.
    """

    promotes: Words
    suppresses: Words


@dataclass(frozen=True)
class ScaleChange:
    """The effect of a tuned scale on the output of its own head, z → s ⊙ z.

    Fields:
        low, mean, high: of s over the coordinates of the head.
        flipped: share of the coordinates whose sign it reverses.
        norm: ‖s − 1‖₂, by which LoFiT ranks heads.
        share: ‖(s − 1) ⊙ z‖ over ‖z‖, each a root mean square over tokens; None without data.
    """

    low: float
    mean: float
    high: float
    flipped: float
    norm: float
    share: float | None


@dataclass(frozen=True, kw_only=True)
class HeadWords:
    """The tokens that the edit of one head promotes and suppresses.

    Fields:
        head: the head.
        weights: by its offset through the direct path, in logits up to a positive factor; None without an open offset,
            or where there is an obstacle.
        measured: by the whole edit on data, in logits; None without data.
        scale: the effect of its scale; None without an open scale.
        obstacle: why ``weights`` cannot be read.
        model: name of the model.
    """

    head: Head
    weights: TokenChanges | None = field(repr=False)
    measured: TokenChanges | None = field(repr=False)
    scale: ScaleChange | None
    obstacle: str | None
    model: str = field(default="", repr=False)


def tokens(
    edits: HeadEdits,
    tokenizer: Any,
    data: Iterable[Any] | None = None,
    *,
    heads: Choice = "open",
    top: int = 10,
    batch_size: int = 16,
    progress: bool = True,
) -> list[HeadWords]:
    """Finds the tokens that the edits of the selected heads promote and suppress.

    Args:
        edits: the handle; not changed.
        tokenizer: the model's tokenizer, its name or its folder.
        data: examples of any form that ``headedit.fit`` takes, to measure on; it costs a forward pass for each head.
        heads: ``open``, ``all``, or a list of (layer, head).
        top: number of tokens promoted, and of tokens suppressed.
        batch_size: examples per batch.
        progress: show a bar.

    Raises:
        HeadEditError: the edits are detached or merged, no head is open or there is no such head, the model has no
            unembedding, the tokenizer is not the model's, or an example cannot be used; without data, also where no
            head can be read from the weights.
    """
    one_or_more(top, "top")
    chosen, tokenizer = edited_heads(edits, heads), as_tokenizer(tokenizer)
    by_head, obstacles = by_weights(edits, chosen, tokenizer, top)
    known = _known(edits, tokenizer)
    measured: Sequence[TokenChanges | None] = [None] * len(chosen)
    shares: dict[tuple[str, int], Tensor] = {}
    if data is not None:
        rows = encode_all(data, tokenizer, edits.model, edits.module.date)
        changes = _measure(edits, chosen, rows, batch_size, progress)
        measured = [_strongest(change[:known], tokenizer, top) for change in changes]
        found = attribute(edits, rows, batch_size=batch_size, progress=progress)
        shares = {(head.site.path, head.index): rms for head, rms in zip(found.heads, found.rms, strict=True)}
    elif all(obstacle is not None for obstacle in obstacles):
        raise HeadEditError(
            f"These tokens cannot be read from the weights: {chosen[0].site.path}: {obstacles[0]}. Give data=... to "
            "measure them."
        )
    name = subtitle_of([edits])
    return [
        HeadWords(
            head=head,
            weights=by_head[i],
            measured=measured[i],
            scale=scale_change(head, shares.get((head.site.path, head.index))),
            obstacle=obstacles[i],
            model=name,
        )
        for i, head in enumerate(chosen)
    ]


def scale_change(head: Head, rms: Tensor | None = None) -> ScaleChange | None:
    """The effect of a head's scale on its output; None without an open scale.

    Args:
        head: the head.
        rms: root mean square of each coordinate of its output, [head_dim]; None where it is not known.
    """
    change = head.effective("scale")
    if change is None or not bool(head.edit.is_open("scale")[head.index]):
        return None
    change = change.float().cpu()
    factor = 1 + change
    return ScaleChange(
        low=factor.min().item(),
        mean=factor.mean().item(),
        high=factor.max().item(),
        flipped=(factor < 0).float().mean().item(),
        norm=change.norm().item(),
        share=None if rms is None else ((change * rms).norm() / rms.norm()).item(),
    )


def by_weights(
    edits: HeadEdits, chosen: Sequence[Head], tokenizer: Any, top: int
) -> tuple[list[TokenChanges | None], list[str | None]]:
    """For each head the tokens of its offset by the direct path, or the obstacle; see ``HeadWords``.

    Raises:
        HeadEditError: the model has no unembedding, or the tokenizer is not the model's.
    """
    known = _known(edits, tokenizer)
    path = direct_path(edits, list({head.site.path: head.site for head in chosen}.values()))
    found: list[TokenChanges | None] = []
    with edits.disable_adapter(), evaluating(edits.model):
        for head in chosen:
            offset = head.effective("offset")
            is_open = offset is not None and bool(head.edit.is_open("offset")[head.index])
            if offset is None or not is_open or head.site.path in path.obstacles:
                found.append(None)
                continue
            change = offset.new_zeros(head.site.heads, head.site.head_dim)
            change[head.index] = offset
            found.append(_strongest(path.logits(head.site, change.view(1, -1))[0, :known].cpu(), tokenizer, top))
    return found, [path.obstacles.get(head.site.path) for head in chosen]


@torch.no_grad()
def _measure(
    edits: HeadEdits, chosen: Sequence[Head], rows: Sequence[Encoded], batch_size: int, progress: bool
) -> Tensor:
    """Mean change of the logits by one head's edit alone, over tokens that predict a label, [heads, vocabulary]."""
    model, everything = edits.model, edited_heads(edits)
    changes: Tensor | None = None
    counted = 0
    with evaluating(model):
        for _, inputs, labels in batches(
            model, rows, batch_size, what="measuring tokens", progress=progress, passes=1 + len(chosen)
        ):
            where = labels[:, 1:] != IGNORED
            with edits.disable_adapter():
                base = _summed(model(**inputs).logits, where)
            found = []
            for head in chosen:
                others = [h for h in everything if (h.site.path, h.index) != (head.site.path, head.index)]
                with switched_off(edits, others), labelled(labels):
                    found.append(_summed(model(**inputs).logits, where) - base)
            changes = torch.stack(found) if changes is None else changes + torch.stack(found)
            counted += int(where.sum())
    assert changes is not None
    return changes / counted


def _summed(logits: Tensor, where: Tensor) -> Tensor:
    """Sum of the logits at some tokens, [vocabulary], float64 on the CPU."""
    return logits[:, :-1][where.to(logits.device)].double().sum(0).cpu()


def _strongest(change: Tensor, tokenizer: Any, top: int) -> TokenChanges:
    change = change - change.mean()
    top = min(top, len(change))
    best, worst = change.topk(top), (-change).topk(top)
    return TokenChanges(
        [(token_text(tokenizer, int(i)), float(v)) for v, i in zip(*best, strict=True)],
        [(token_text(tokenizer, int(i)), -float(v)) for v, i in zip(*worst, strict=True)],
    )


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text, with its leading space if it has one; as in the vocabulary where it is not a whole character."""
    raw = str(tokenizer.convert_ids_to_tokens(token))
    text: str = tokenizer.decode([token])
    if not text or "\ufffd" in text:
        return raw
    return f" {text}" if raw[0] in "▁Ġ" and text[0] != " " else text


def _known(edits: HeadEdits, tokenizer: Any) -> int:
    """The number of tokens that the tokenizer knows."""
    weight = getattr(unembedding_of(edits.model), "weight", None)
    rows = int(getattr(unembedding_of(edits.model), "out_features", 0) or (0 if weight is None else weight.shape[0]))
    try:
        known = len(tokenizer)
    except TypeError:
        raise HeadEditError(f"tokenizer: found {type(tokenizer).__name__}, expected the model's tokenizer.") from None
    if rows and not _FEWEST * rows <= known <= rows:
        raise HeadEditError(
            f"The tokenizer knows {known} tokens, but the model's unembedding has {rows}. Give the model's own "
            "tokenizer, such as AutoTokenizer.from_pretrained with the name of the model."
        )
    return known
