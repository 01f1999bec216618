"""The edited heads of a model, and a context that switches the edits of some of them off."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import index
from typing import Any

import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.interpret.labels import head_name
from headedit.specs import HeadSite

Choice = str | Sequence[tuple[int, int]]
"""Which heads: ``open``, those with an open gate; ``all``, every edited one; or a list of (layer, head)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """One head that has an edit.

    Fields:
        layer: index of its layer.
        kind: the kind of its site.
        head: its column, as ``HeadEdits.gates`` and ``set_head`` count: over all sites of a kind in a layer.
        site: where it is.
        index: which head of the site it is.
        edit: the edit of the site.
    """

    layer: int
    kind: str
    head: int
    site: HeadSite = field(repr=False)
    index: int = field(repr=False)
    edit: SiteEdit = field(repr=False)

    @property
    def name(self) -> str:
        """Layer and head, as ``L12H3``; the kind behind it where it is not attention."""
        return head_name(self.layer, self.head) + ("" if self.kind == "attention" else f" {self.kind}")

    @property
    def is_open(self) -> bool:
        """Whether one of its vectors has an open gate."""
        return any(bool(self.edit.is_open(vector)[self.index]) for vector in self.edit.vectors)

    @torch.no_grad()
    def effective(self, vector: str) -> Tensor | None:
        """Strength · gate · vector, [head_dim], added to the head or to the factor 1 on it; None without the vector."""
        return self.edit.effective()[vector][self.index] if vector in self.edit.vectors else None


def edited_heads(edits: HeadEdits, choice: Choice = "all") -> list[Head]:
    """The heads that have an edit, kind by kind, by layer and head.

    Args:
        edits: the handle.
        choice: ``open``, ``all``, or (layer, head) pairs, which are of the first kind of site.

    Raises:
        HeadEditError: ``edits`` is not a handle, is detached or merged, or has no such head, or none is open.
    """
    check_acting(edits)
    module = edits.module
    heads = [
        Head(layer=site.layer, kind=kind, head=first + index, site=site, index=index, edit=edit)
        for kind in module.kinds()
        for site, edit, first in module.columns(kind)
        for index in range(site.heads)
    ]
    if choice == "all":
        return heads
    if choice == "open":
        chosen = [head for head in heads if head.is_open]
        if not chosen:
            raise HeadEditError(
                "No head is edited: every gate is closed. Train the edits, or set some heads with set_head."
            )
        return chosen
    places = _places(choice)
    by_place = {(head.layer, head.head): head for head in reversed(heads)}  # reversed: the first kind counts
    missing = next((place for place in places if place not in by_place), None)
    if missing is not None:
        layers = sorted({head.layer for head in heads})
        raise HeadEditError(f"There is no edited head {missing[1]} in layer {missing[0]}; edited layers: {layers}.")
    return [by_place[place] for place in places]


def _places(choice: Any) -> list[tuple[int, int]]:
    """The (layer, head) pairs of a list that holds at least one, and nothing else."""
    pairs: list[Any] = []
    with suppress(TypeError, ValueError):
        pairs = [] if isinstance(choice, str) else [(index(layer), index(head)) for layer, head in choice]
    if not pairs:
        raise HeadEditError(f"heads: found {choice!r}, expected 'open', 'all' or a list of (layer, head).")
    return pairs


def check_handle(edits: Any) -> None:
    """Raises a HeadEditError unless this is the handle of edits."""
    if not isinstance(edits, HeadEdits):
        raise HeadEditError(
            f"Found a {type(edits).__name__}, expected the handle of edits, which headedit.attach(model) and "
            "headedit.load(model, folder) return."
        )


def check_acting(edits: HeadEdits) -> None:
    """Raises a HeadEditError unless the edits are attached to the model, not merged, and not in a context."""
    check_handle(edits)
    if not edits.attached:
        raise HeadEditError("These edits are detached, so they have no effect; attach or load them on the model first.")
    if edits.merged is not None:
        raise HeadEditError(
            "These edits are merged into the weights, where no single head can be switched off. Call "
            "unmerge_adapter() first."
        )
    if edits.in_context():
        edits.refuse_contexts("no head can be measured")


@contextmanager
def switched_off(edits: HeadEdits, heads: Iterable[Head]) -> Iterator[None]:
    """A context, of the thread or task that enters it, in which the edits of some heads do nothing."""
    by_site: dict[str, SiteEdit] = {site.name: edit for site, edit in edits.module.pairs()}
    copied: set[str] = set()
    with torch.no_grad():
        for head in heads:
            name = head.site.name
            if name not in copied:
                copied.add(name)
                by_site[name] = copy.deepcopy(by_site[name])
            for vector in by_site[name].vectors.parameters():
                vector[head.index] = 0.0
    with edits.applying(by_site):
        yield
