"""Sets of gates: gates named one by one, opened or closed for good, and hardened edits."""

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch

from headedit.edits.adapter import Adapter
from headedit.edits.gates import SATURATED
from headedit.edits.site_edit import SiteEdit

_FIXED = SATURATED / 10
"""Gates whose logit is this far from 0 have no gradient; no training leads there."""

_MARGIN = 0.1
"""On a logit, so that a gate stays 1 where its dtype rounds."""


class GateIndex(NamedTuple):
    """One gate: the index of its site in ``edits.sites``, the vector that owns it, the head in the site.

    A gate that a head's two vectors share is named by the first of them.
    """

    site: int
    vector: str
    head: int


def all_gates(adapter: Adapter) -> list[GateIndex]:
    """Every gate, by site, vector and head; empty where the vectors have none."""
    return [
        GateIndex(i, vector, head)
        for i, edit in enumerate(adapter)
        for vector in edit.gated_vectors()
        for head in range(edit.heads)
    ]


def open_gates(adapter: Adapter) -> list[GateIndex]:
    """The gates that are open: the rectified deterministic gate of Louizos et al. is above 0."""
    opened = {(i, vector): edit.is_open(vector).tolist() for i, edit in enumerate(adapter) for vector in edit.vectors}
    return [gate for gate in all_gates(adapter) if opened[gate.site, gate.vector][gate.head]]


def not_closed(adapter: Adapter) -> list[GateIndex]:
    """The gates that are not closed for good: those that are open, and those that may still open."""
    values = {
        (i, owner): gate.tolist()
        for i, edit in enumerate(adapter)
        for owner in edit.gated_vectors()
        if (gate := edit.gate(owner)) is not None
    }
    return [gate for gate in all_gates(adapter) if values[gate.site, gate.vector][gate.head] > -_FIXED]


def heads_of(gates: Iterable[GateIndex]) -> set[tuple[int, int]]:
    """The heads, as (site, head), that some gates belong to."""
    return {(gate.site, gate.head) for gate in gates}


@torch.no_grad()
def close(adapter: Adapter, gates: Collection[GateIndex]) -> None:
    """Closes gates for good, in training and eval mode, and sets the vectors that they act on to zero."""
    for edit, owner, heads in _by_owner(adapter, gates):
        _set(edit, owner, heads, -SATURATED)
        for vector in edit.vectors_of(owner):
            edit.vectors[vector][heads] = 0.0


@torch.no_grad()
def freeze_gates(adapter: Adapter, opened: Collection[GateIndex]) -> None:
    """Opens some gates for good and closes all others, in training and eval mode, so that only vectors are learned."""
    chosen = set(opened)
    close(adapter, [gate for gate in all_gates(adapter) if gate not in chosen])
    for edit, owner, heads in _by_owner(adapter, chosen):
        _set(edit, owner, heads, SATURATED)


@torch.no_grad()
def take_out(adapter: Adapter) -> None:
    """Closes every gate for good and sets every vector to zero, so that the model is the unedited one bit for bit."""
    freeze_gates(adapter, [])
    for edit in adapter:
        for vector in edit.vectors.values():
            vector.zero_()


@torch.no_grad()
def release_gates(adapter: Adapter) -> None:
    """Lets gates that are open or closed for good be learned again, unless hardening froze them.

    With ``eval_gate="clip"`` the edits act as before in eval mode: a gate that was open gets the lowest logit at which
    it is still 1, and what a closed one held back is set to zero; its logit is ``gate_init``.
    """
    config = adapter.config
    low, high = config.stretch
    at_one = max(config.gate_init, math.log((1 - low) / (high - 1)) + _MARGIN)
    for edit in adapter:
        for owner in edit.gated_vectors():
            gate = edit.gate(owner)
            assert gate is not None
            if not gate.requires_grad:
                continue
            opened, closed = gate >= _FIXED, gate <= -_FIXED
            for vector in edit.vectors_of(owner):
                edit.vectors[vector][closed] = 0.0
            gate[opened], gate[closed] = at_one, config.gate_init
            edit.idle = False


@torch.no_grad()
def harden(adapter: Adapter) -> None:
    """Moves the gates' values into the vectors and freezes the gates; see ``HeadEdits.harden``."""
    opened = open_gates(adapter)
    for edit in adapter:
        for vector, value in edit.effective().items():
            edit.vectors[vector].copy_(value)
    adapter.strength = 1.0
    freeze_gates(adapter, opened)
    for edit in adapter:
        edit.gates.requires_grad_(False)
        edit.idle = bool(len(edit.gates)) and not any(edit.is_open(vector).any() for vector in edit.vectors)


def _set(edit: SiteEdit, owner: str, heads: list[int], value: float) -> None:
    gate = edit.gate(owner)
    assert gate is not None
    gate[heads] = value
    edit.idle = False


def _by_owner(adapter: Adapter, gates: Collection[GateIndex]) -> list[tuple[SiteEdit, str, list[int]]]:
    grouped: dict[tuple[int, str], list[int]] = {}
    for gate in gates:
        grouped.setdefault((gate.site, gate.vector), []).append(gate.head)
    edits = list(adapter)
    return [(edits[site], vector, heads) for (site, vector), heads in grouped.items()]
