"""Which gates are open for good: gates named one by one, fixed open or closed, and hardened edits."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch

from headedit.edits.adapter import Adapter
from headedit.edits.gates import SATURATED
from headedit.edits.site_edit import SiteEdit


class Gate(NamedTuple):
    """One gate: the index of its site in ``edits.sites``, the vector it stands on, the head in the site.

    A gate that a head's two vectors share is named by the first of them.
    """

    site: int
    vector: str
    head: int


def all_gates(module: Adapter) -> list[Gate]:
    """Every gate, by site, vector and head; empty where the vectors have none."""
    return [
        Gate(i, vector, head)
        for i, edit in enumerate(module)
        for vector in edit.gated_vectors()
        for head in range(edit.heads)
    ]


def open_gates(module: Adapter) -> list[Gate]:
    """The gates that are open: the rectified deterministic gate of Louizos et al. is above 0."""
    opened = {(i, vector): edit.is_open(vector).tolist() for i, edit in enumerate(module) for vector in edit.vectors}
    return [gate for gate in all_gates(module) if opened[gate.site, gate.vector][gate.head]]


def heads_of(gates: Iterable[Gate]) -> set[tuple[int, int]]:
    """The heads, as (site, head), that some gates stand on."""
    return {(gate.site, gate.head) for gate in gates}


@torch.no_grad()
def close(module: Adapter, gates: Collection[Gate]) -> None:
    """Closes gates for good, in training and eval, and sets the vectors under them to zero."""
    for edit, vector, heads in _by_vector(module, gates):
        _set(edit, vector, heads, -SATURATED)
        for name in edit.under(vector):
            getattr(edit, name)[heads] = 0.0


@torch.no_grad()
def fix(module: Adapter, opened: Collection[Gate]) -> None:
    """Opens some gates for good and closes all others, in training and eval: what is left to learn are vectors."""
    chosen = set(opened)
    close(module, [gate for gate in all_gates(module) if gate not in chosen])
    for edit, vector, heads in _by_vector(module, chosen):
        _set(edit, vector, heads, SATURATED)


@torch.no_grad()
def harden(module: Adapter) -> None:
    """Takes the gates' values into the vectors and fixes the gates; see ``HeadEdits.harden``."""
    opened = open_gates(module)
    for edit in module:
        for vector, acting in edit.acting().items():
            getattr(edit, vector).copy_(acting)
    module.strength = 1.0
    fix(module, opened)
    for edit in module:
        gated = edit.gated_vectors()
        edit.idle = bool(gated) and not any(edit.is_open(vector).any() for vector in edit.vectors)
        for vector in gated:
            gate = edit.log_alpha(vector)
            assert gate is not None
            gate.requires_grad_(False)


def _set(edit: SiteEdit, vector: str, heads: list[int], value: float) -> None:
    gate = edit.log_alpha(vector)
    assert gate is not None
    gate[heads] = value
    edit.idle = False


def _by_vector(module: Adapter, gates: Collection[Gate]) -> list[tuple[SiteEdit, str, list[int]]]:
    grouped: dict[tuple[int, str], list[int]] = {}
    for gate in gates:
        grouped.setdefault((gate.site, gate.vector), []).append(gate.head)
    edits = list(module)
    return [(edits[site], vector, heads) for (site, vector), heads in grouped.items()]
