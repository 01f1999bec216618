"""Sums, differences and multiples of edits, taken of what acts: a + 0.5 * b, a - b."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from headedit.edits.gates import SATURATED
from headedit.errors import HeadEditError
from headedit.specs import HeadSite

if TYPE_CHECKING:
    from headedit.edits.adapter import Adapter


class Arithmetic:
    """The operators of edits: each gives new edits, which are on no model until ``add_adapter`` puts them there.

    What is added is what acts in eval mode, strength · gate · vector, head by head: the factors' excess over 1, g_m·m,
    and the offsets, g_a·a. A head that has either has open gates in the result, all others are closed for good.
    """

    def _edits(self) -> "Adapter":
        raise NotImplementedError

    def __add__(self, other: "Arithmetic") -> "Adapter":
        """The sum of two edits.

        Raises:
            HeadEditError: they are edits of other sites.
        """
        return _combined([(1.0, self), (1.0, other)]) if isinstance(other, Arithmetic) else NotImplemented

    def __sub__(self, other: "Arithmetic") -> "Adapter":
        """The difference of two edits.

        Raises:
            HeadEditError: they are edits of other sites.
        """
        return _combined([(1.0, self), (-1.0, other)]) if isinstance(other, Arithmetic) else NotImplemented

    def __mul__(self, factor: float) -> "Adapter":
        """A multiple of an edit."""
        return _combined([(float(factor), self)]) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> "Adapter":
        """The edit that takes another one back, to first order: -g_m·m and -g_a·a."""
        return _combined([(-1.0, self)])


@torch.no_grad()
def _combined(terms: list[tuple[float, Arithmetic]]) -> "Adapter":
    from headedit.edits.adapter import Adapter

    modules = [(factor, term._edits()) for factor, term in terms]
    first = modules[0][1]
    for _, module in modules[1:]:
        _check_same_sites(first.where, module.where)
    vectors = {module.config.vectors for _, module in modules}
    config = replace(
        first.config, vectors=vectors.pop() if len(vectors) == 1 else "both", gates="separate", init_std=0.0
    )
    result = Adapter(first.where, config)
    for i, edit in enumerate(result):
        acting = [(factor, list(module)[i].acting()) for factor, module in modules]
        for vector in edit.vectors:
            total = getattr(edit, vector)
            for factor, of in acting:
                if vector in of:
                    total.data = total + factor * of[vector].to(total.device)
            gate = edit.log_alpha(vector)
            assert gate is not None
            gate.data = torch.where((total != 0).any(1), SATURATED, -SATURATED).to(total.dtype)
            gate.requires_grad_(False)
    return result


def shapes_of(sites: list[HeadSite]) -> dict[str, str]:
    """The shape of every site by its name, in words."""
    return {site.name: f"{site.heads} heads of {site.head_dim}" for site in sites}


def _check_same_sites(ours: list[HeadSite], theirs: list[HeadSite]) -> None:
    a, b = shapes_of(ours), shapes_of(theirs)
    differing = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    if differing:
        name = differing[0]
        raise HeadEditError(
            f"These edits cannot be added: {len(differing)} of their sites differ, such as {name}: "
            f"{a.get(name, 'no site')} against {b.get(name, 'no site')}. Add edits of the same layers, sites and model "
            "shape."
        )
