"""The parameters of the edits on one model, a ``SiteEdit`` a site, and what their gates say."""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from headedit.edits.algebra import Arithmetic
from headedit.edits.config import EditConfig
from headedit.edits.site_edit import VECTORS, SiteEdit
from headedit.errors import HeadEditError
from headedit.specs import HeadSite, Spec, find_sites
from headedit.specs.schema import SITE_KINDS

_STRONGEST = 1e6  # so that nothing overflows


class Gates(NamedTuple):
    """Deterministic gate values, each [layers, heads], NaN where a layer has no such head."""

    additive: Tensor
    multiplicative: Tensor


class Adapter(nn.Module, Arithmetic):
    """The edits of one name: a ``SiteEdit`` for each of ``where``, in that order.

    They can be added and multiplied: ``a + 0.5 * b``; see ``Arithmetic``.
    """

    def __init__(self, where: list[HeadSite], config: EditConfig) -> None:
        super().__init__()
        self.where, self.config = where, config
        self._strength = 1.0
        self._asleep: list[str] | None = None
        self.sites = nn.ModuleList(SiteEdit(site, config, _device_of(site.module)) for site in where)

    def __iter__(self) -> Iterator[SiteEdit]:
        for site in self.sites:
            assert isinstance(site, SiteEdit)
            yield site

    def _edits(self) -> "Adapter":
        return self

    @property
    def strength(self) -> float:
        """The factor on every vector; see ``HeadEdits.strength``."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= _STRONGEST:
            raise HeadEditError(f"strength: found {value!r}, expected a number such as 0.5; 1 is as trained.")
        self._strength = float(value)
        for edit in self:
            edit.set_strength(self._strength)

    def trainable(self) -> list[str]:
        """The names of the parameters that are trained when these edits are the active ones."""
        awake = [name for name, p in self.named_parameters() if p.requires_grad]
        return awake if self._asleep is None else self._asleep

    def rest(self) -> None:
        """Freezes what is trainable, until ``wake``."""
        if self._asleep is None:
            self._asleep = self.trainable()
            self.requires_grad_(False)

    def wake(self) -> None:
        """Makes trainable again what ``rest`` froze."""
        for name in self._asleep or []:
            self.get_parameter(name).requires_grad_(True)
        self._asleep = None

    def kinds(self) -> list[str]:
        """The kinds of site that are edited: attention first, if it is among them."""
        there = {site.kind for site in self.where}
        return [kind for kind in SITE_KINDS if kind in there]

    def pairs(self) -> Iterator[tuple[HeadSite, SiteEdit]]:
        """Every site with its edit."""
        return zip(self.where, self, strict=True)

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
        placed = list(self.columns(kind))
        layers = max(site.layers for site, _, _ in placed)
        grid = torch.full((layers, max(first + site.heads for site, _, first in placed)), torch.nan)
        for site, edit, first in placed:
            gate = edit.gates().get(vector)
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

    def penalty(self, vector: Literal["offset", "scale"] | None, *, share: bool) -> Tensor:
        """Expected number or share of open gates; see ``HeadEdits.penalty``."""
        logits: dict[torch.device, list[Tensor]] = {}
        for edit in self:
            for log_alpha in edit.log_alphas(vector):
                logits.setdefault(log_alpha.device, []).append(log_alpha)
        if not logits:
            return torch.zeros((), device=next(self.parameters()).device)
        gates = [next(iter(self)).distribution.open_probability(torch.cat(there)) for there in logits.values()]
        total = sum((gate.sum().to(gates[0].device) for gate in gates[1:]), gates[0].sum())
        return total / sum(gate.numel() for gate in gates) if share else total


def edited_sites(
    model: nn.Module, spec: Spec, config: EditConfig, names: Collection[str] | None = None
) -> list[HeadSite]:
    """The sites that edits of a config have on a model.

    Args:
        model: the model.
        spec: where its heads are.
        config: the shape of the edits.
        names: only the sites of these names, in place of the config's layers.

    Raises:
        HeadEditError: the spec does not fit the model, or the config asks for what is not there.
    """
    sites = find_sites(model, spec, config.sites, mlp_groups=config.mlp_groups)
    if names is not None:
        return [site for site in sites if site.name in names]
    layers = set(config.select_layers(sorted({site.layer for site in sites})))
    return [site for site in sites if site.layer in layers]


def _count(opened: list[Tensor]) -> tuple[int, int]:
    return sum(int(o.sum()) for o in opened), sum(o.numel() for o in opened)


def _device_of(module: nn.Module) -> torch.device:
    execution = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if execution is not None:  # accelerate keeps the weight elsewhere until the module runs
        return torch.device(execution)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device
