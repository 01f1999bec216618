"""One adapter: a ``SiteEdit`` for every site, what their gates say, and sums of adapters."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from headedit.edits.config import EditConfig
from headedit.edits.gates import SATURATED
from headedit.edits.site_edit import VECTORS, SiteEdit
from headedit.edits.strength import Strength, check_strength
from headedit.edits.summands import check_finite, check_same_positions, check_same_sites
from headedit.edits.values import real_number
from headedit.errors import HeadEditError
from headedit.io.describe import describe
from headedit.specs import HeadSite
from headedit.specs.schema import SITE_KINDS

_FACTOR = "a finite number such as 0.5; edits are added to edits and multiplied by numbers"


class Gates(NamedTuple):
    """Deterministic gate values, each [layers, heads], NaN where a layer has no such head."""

    offset: Tensor
    scale: Tensor

    @property
    def additive(self) -> Tensor:
        """The gates of the offsets, by the paper's name."""
        return self.offset

    @property
    def multiplicative(self) -> Tensor:
        """The gates of the scales, by the paper's name."""
        return self.scale


class Arithmetic:
    """The operators of edits, such as ``a + 0.5 * b``; each gives a new adapter, which ``add_adapter`` puts on a model.

    The effective values are added, strength · gate · vector, head by head: the factors' excess over 1, g_m·m, and the
    offsets, g_a·a. A head that has either has open gates in the result; all other gates are closed for good.
    """

    __array_ufunc__ = None  # numpy leaves the product of its scalars with edits to __rmul__

    def _adapter(self) -> "Adapter":
        raise NotImplementedError

    def __add__(self, other: "Arithmetic") -> "Adapter":
        """The sum of two edits.

        Raises:
            HeadEditError: they are edits of other sites, the sum is not finite, or something else is added.
        """
        return weighted_sum([(1.0, self), (1.0, _as_edits(other, "added"))])

    def __radd__(self, other: Literal[0]) -> "Adapter":
        """The edits themselves, so that ``sum([a, b])``, which begins with 0, adds them."""
        return weighted_sum([(1.0, self), *([] if other == 0 else [(1.0, _as_edits(other, "added"))])])

    def __sub__(self, other: "Arithmetic") -> "Adapter":
        """The difference of two edits.

        Raises:
            HeadEditError: they are edits of other sites, the difference is not finite, or something else is subtracted.
        """
        return weighted_sum([(1.0, self), (-1.0, _as_edits(other, "subtracted"))])

    def __mul__(self, factor: float) -> "Adapter":
        """A multiple of an edit.

        Raises:
            HeadEditError: the factor is not a finite number, or the multiple is not finite.
        """
        return weighted_sum([(real_number(factor, "factor of edits", _FACTOR), self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Adapter":
        """An edit divided by a number.

        Raises:
            HeadEditError: the divisor is not a finite number, or is 0; or the result is not finite.
        """
        number = real_number(divisor, "divisor of edits", _FACTOR)
        if number == 0:
            raise HeadEditError("divisor of edits: found 0, expected another number.")
        return weighted_sum([(1 / number, self)])

    def _refuse_on_the_right(self, other: object) -> "Adapter":
        raise HeadEditError(f"{describe(other)} stands before edits; write edits - edits, and edits / 2.")

    __rsub__ = __rtruediv__ = _refuse_on_the_right

    def __neg__(self) -> "Adapter":
        """The edit that undoes another one to first order: -g_m·m and -g_a·a."""
        return weighted_sum([(-1.0, self)])


class Adapter(nn.Module, Arithmetic):
    """The edits of one name: iterating gives a ``SiteEdit`` for each of ``sites``, in that order.

    Adapters can be added and multiplied: ``a + 0.5 * b``; see ``Arithmetic``.

    Fields:
        sites: where the edits are.
        config: the shape of the edits.
        dial: their strength, which all sites share.
        site_edits: their parameters.
        date: the date that the chat template was given in training, in ISO format; None where it asked for none.
    """

    date: str | None = None

    def __init__(self, sites: list[HeadSite], config: EditConfig) -> None:
        super().__init__()
        self.sites, self.config = sites, config
        self.dial = Strength()
        self._frozen: list[str] | None = None
        self.site_edits = nn.ModuleList(SiteEdit(site, config, _device_of(site.module), self.dial) for site in sites)

    def __iter__(self) -> Iterator[SiteEdit]:
        for edit in self.site_edits:
            assert isinstance(edit, SiteEdit)
            yield edit

    def _adapter(self) -> "Adapter":
        return self

    @property
    def strength(self) -> float:
        """The factor on every vector; see ``HeadEdits.strength``."""
        return self.dial.value

    @strength.setter
    def strength(self, value: float) -> None:
        self.dial.set(check_strength(value))

    def trainable(self) -> list[str]:
        """The names of the parameters that are trained when this adapter is the active one."""
        requiring = [name for name, p in self.named_parameters() if p.requires_grad]
        return requiring if self._frozen is None else self._frozen

    def freeze(self) -> None:
        """Freezes the trainable parameters, until ``unfreeze``."""
        if self._frozen is None:
            self._frozen = self.trainable()
            self.requires_grad_(False)

    def unfreeze(self) -> None:
        """Makes trainable again what ``freeze`` froze."""
        for name in self._frozen or []:
            self.get_parameter(name).requires_grad_(True)
        self._frozen = None

    def kinds(self) -> list[str]:
        """The kinds of site that are edited: attention first, if it is among them."""
        present = {site.kind for site in self.sites}
        return [kind for kind in SITE_KINDS if kind in present]

    def pairs(self) -> Iterator[tuple[HeadSite, SiteEdit]]:
        """Every site with its edit."""
        return zip(self.sites, self, strict=True)

    @torch.no_grad()
    def gates(self, kind: str | None = None) -> Gates:
        """The gates in eval mode; see ``HeadEdits.gates``."""
        kind = self.kinds()[0] if kind is None else kind
        if kind not in self.kinds():
            raise HeadEditError(f"These edits have no site of kind '{kind}'; they have {', '.join(self.kinds())}.")
        return Gates(*(self._grid(vector, kind) for vector in VECTORS))

    def columns(self, kind: str) -> Iterator[tuple[HeadSite, SiteEdit, int]]:
        """Every site of a kind with its edit and the column of its first head.

        Where a layer has several sites of the kind, their heads are counted side by side.
        """
        taken: dict[int, int] = {}
        for site, edit in self.pairs():
            if site.kind == kind:
                first = taken.get(site.layer, 0)
                taken[site.layer] = first + site.heads
                yield site, edit, first

    def _grid(self, vector: str, kind: str) -> Tensor:
        columns = list(self.columns(kind))
        layers = max(site.layers for site, _, _ in columns)
        grid = torch.full((layers, max(first + site.heads for site, _, first in columns)), torch.nan)
        for site, edit, first in columns:
            gate = edit.gate_values().get(vector)
            if gate is not None:
                grid[site.layer, first : first + site.heads] = gate.float().cpu()
        return grid

    @torch.no_grad()
    def count_open(self) -> dict[str, tuple[int, int]]:
        """Open gates and all gates of each vector; see ``HeadEdits.count_open``."""
        open_by_site = [{vector: edit.is_open(vector) for vector in edit.vectors} for edit in self]
        counts = {}
        for vector in VECTORS:
            opened = [site[vector] for site in open_by_site if vector in site]
            counts[vector] = _count(opened)
        counts["any"] = _count([torch.stack(list(site.values())).any(0) for site in open_by_site])
        return counts

    def count_effective_parameters(self) -> int:
        """The number of values in vectors whose gate is open: what is left of the edits when they are hardened."""
        return sum(int(edit.is_open(vector).sum()) * edit.head_dim for edit in self for vector in edit.vectors)

    def penalty(self, vector: Literal["offset", "scale"] | None, *, share: bool) -> Tensor:
        """Expected number or share of open gates; see ``HeadEdits.penalty``."""
        logits: dict[torch.device, list[Tensor]] = {}
        for edit in self:
            for log_alpha in edit.gate_logits(vector):
                logits.setdefault(log_alpha.device, []).append(log_alpha)
        if not logits:
            return torch.zeros((), device=next(self.parameters()).device)
        gates = [next(iter(self)).distribution.open_probability(torch.cat(group)) for group in logits.values()]
        total = sum((gate.sum().to(gates[0].device) for gate in gates[1:]), gates[0].sum())
        return total / sum(gate.numel() for gate in gates) if share else total


@torch.no_grad()
def weighted_sum(terms: list[tuple[float, Arithmetic]]) -> Adapter:
    """The adapter whose effective values are Σ factor · effective values of the terms.

    Raises:
        HeadEditError: the terms are edits of other sites or act on other tokens, or the sum is NaN or infinite
            somewhere.
    """
    adapters = [(factor, term._adapter()) for factor, term in terms]
    first = adapters[0][1]
    for _, adapter in adapters[1:]:
        check_same_sites(first.sites, adapter.sites)
        check_same_positions(first.config.positions, adapter.config.positions)
    vectors = {adapter.config.vectors for _, adapter in adapters}
    config = replace(
        first.config, vectors=vectors.pop() if len(vectors) == 1 else "both", gates="separate", init_std=0.0
    )
    result = Adapter(first.sites, config)
    dates = {adapter.date for _, adapter in adapters}
    result.date = dates.pop() if len(dates) == 1 else None
    for edit, *edits in zip(result, *(adapter for _, adapter in adapters), strict=True):
        effective = [(factor, term.effective()) for (factor, _), term in zip(adapters, edits, strict=True)]
        for name, vector in edit.vectors.items():
            for factor, values in effective:
                if name in values:
                    vector.data = vector.data + factor * values[name].to(vector.device)
            gate = edit.gate(name)
            assert gate is not None
            gate.data = torch.where((vector != 0).any(1), SATURATED, -SATURATED).to(vector.dtype)
            gate.requires_grad_(False)
    for site, edit in result.pairs():
        check_finite(dict(edit.vectors.items()), site)
    return result


def _as_edits(given: Any, verb: str) -> Arithmetic:
    if not isinstance(given, Arithmetic):
        raise HeadEditError(
            f"Only edits can be {verb}, such as a handle or edits['name']; found {describe(given)}. Numbers multiply "
            "edits: 0.5 * edits['name']."
        )
    return given


def _count(opened: list[Tensor]) -> tuple[int, int]:
    return sum(int(o.sum()) for o in opened), sum(o.numel() for o in opened)


def _device_of(module: nn.Module) -> torch.device:
    execution = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if execution is not None:  # accelerate keeps the weight elsewhere until the module runs
        return torch.device(execution)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device
