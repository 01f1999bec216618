"""Decoy heads: copies of heads that are none of the model's, so that whatever selects one is wrong."""

from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex
from headedit.edits.site_edit import SiteEdit
from headedit.hf.sharding import refuse_tensor_parallel


class Decoys:
    """A decoy for every gate of some edits, which acts on the model while this context is open.

    The coordinates of a site's heads are shuffled across its heads, once for all: a decoy head has as many coordinates
    as a head, taken from many of them, and an offset and a scale of its own. It sees the same activations and learns
    from the same losses as a head. It can take the place of others as well as a head without an effect can, and a
    little better in the layers of those with one, whose coordinates it shares. So it shows not only what is selected
    because of noise, but also what is selected in the place of others.

    Args:
        edits: the handle.
        seed: of the shuffle.

    Fields:
        vectors: by site, the decoys' ``offset`` and ``scale``, [heads, head_dim], as of the edits.
    """

    def __init__(self, edits: HeadEdits, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._edits, self._stack = edits, ExitStack()
        self._shuffles: list[Tensor] = []
        self._open: list[dict[str, Tensor]] = []
        self.vectors: list[dict[str, nn.Parameter]] = []
        for edit in edits.module:
            self._shuffles.append(torch.randperm(edit.heads * edit.head_dim, generator=generator))
            self.vectors.append({name: nn.Parameter(torch.zeros_like(v)) for name, v in edit.vectors.items()})
            self._open.append({name: torch.ones_like(v[:, :1]) for name, v in edit.vectors.items()})

    def __enter__(self) -> "Decoys":
        sites = self._edits.sites
        refuse_tensor_parallel(self._edits.model, (site.module for site in sites), "Selecting heads against decoys")
        for i, site in enumerate(sites):
            self._stack.callback(site.module.register_forward_pre_hook(_Hook(self, i)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def close(self, gates: Collection[GateIndex], edits: list[SiteEdit]) -> None:
        """Switches the decoys of some gates off for good."""
        for gate in gates:
            for name in edits[gate.site].vectors_of(gate.vector):
                self._open[gate.site][name][gate.head] = 0.0

    def added(self, site: int, z: Tensor) -> Tensor:
        """What the decoys of a site add to its input, in the shape of z and the dtype of their vectors."""
        acting = {name: (v * self._open[site][name]).flatten().to(z.device) for name, v in self.vectors[site].items()}
        shuffle = self._shuffles[site].to(z.device)
        flat = z.flatten(-2) if z.shape[-1] != len(shuffle) else z
        change: Any = acting.get("offset", 0.0)
        if "scale" in acting:
            change = change + acting["scale"] * flat[..., shuffle]
        change = change.expand_as(flat)
        return torch.zeros_like(change).index_copy(-1, shuffle, change).view(z.shape)


class _Hook:
    """The pre-hook of one site."""

    def __init__(self, decoys: Decoys, site: int) -> None:
        self._decoys, self._site = decoys, site

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0]
        return ((z + self._decoys.added(self._site, z)).to(z.dtype), *args[1:])
