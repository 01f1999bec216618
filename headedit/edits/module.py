"""The parameters of the edits on one model, a ``SiteEdit`` a site, and what their gates say."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from headedit.edits.config import EditConfig
from headedit.edits.site import VECTORS, SiteEdit
from headedit.errors import HeadEditError
from headedit.specs import HeadSite
from headedit.specs.schema import SITE_KINDS


class Gates(NamedTuple):
    """Deterministic gate values, each [layers, heads], NaN where a layer has no such head."""

    additive: Tensor
    multiplicative: Tensor


class EditModule(nn.Module):
    """One ``SiteEdit`` for each of ``where``, in that order; the submodule that an edited model carries."""

    def __init__(self, where: list[HeadSite], config: EditConfig) -> None:
        super().__init__()
        self.where, self.config = where, config
        self.sites = nn.ModuleList(SiteEdit(site, config, _device_of(site.module)) for site in where)

    def __iter__(self) -> Iterator[SiteEdit]:
        for site in self.sites:
            assert isinstance(site, SiteEdit)
            yield site

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

    def _grid(self, vector: str, kind: str) -> Tensor:
        rows: dict[int, list[Tensor]] = {}
        for site, edit in self.pairs():
            if site.kind == kind:
                gate = edit.gates().get(vector)
                empty = torch.full((site.heads,), torch.nan)
                rows.setdefault(site.layer, []).append(empty if gate is None else gate.float().cpu())
        joined = {layer: torch.cat(parts) for layer, parts in rows.items()}
        layers = max(site.layers for site in self.where if site.kind == kind)
        grid = torch.full((layers, max(map(len, joined.values()))), torch.nan)
        for layer, values in joined.items():
            grid[layer, : len(values)] = values
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
        gates = [gate for edit in self for gate in edit.open_probabilities(vector)]
        if not gates:
            return torch.zeros((), device=next(self.parameters()).device)
        total = torch.stack([gate.sum().to(gates[0].device) for gate in gates]).sum()
        return total / sum(gate.numel() for gate in gates) if share else total


def _count(opened: list[Tensor]) -> tuple[int, int]:
    return sum(int(o.sum()) for o in opened), sum(o.numel() for o in opened)


def _device_of(module: nn.Module) -> torch.device:
    execution = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if execution is not None:  # accelerate keeps the weight elsewhere until the module runs
        return torch.device(execution)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device
