"""The edit of one site: the vectors and gates of its heads, and the affine map that they make of its input.

JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), section 3, z' = (1 + g_m·m) ⊙ z + g_a·a: m is ``scale``, a is
``offset``. The maps of many sites are computed together, in a number of operators that does not grow with the sites.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.affine import Affine, apply_affine, broadcast_to_heads, heads_shape
from headedit.edits.config import EditConfig
from headedit.edits.gate_noise import gate_noise
from headedit.edits.gates import SATURATED, HardConcrete
from headedit.edits.parameters import NamedParameters
from headedit.edits.site_input import take
from headedit.edits.strength import Strength
from headedit.errors import HeadEditError
from headedit.hf.sharding import Part
from headedit.specs import HeadSite

VECTORS = ("offset", "scale")

Values = Mapping[str, Tensor]
"""The tensors of one site by name, such as ``offset`` and ``offset_gate``."""


class SiteEdit(nn.Module):
    """Vectors and gates for the heads of one site.

    Parameters:
        vectors: ``offset`` and ``scale``, [heads, head_dim]; the config can leave one of them out.
        gates: their log α, ``offset_gate`` and ``scale_gate``, [heads]; a shared gate is the gate of the first vector,
            and without gates there are none.

    Fields:
        idle: whether hardening left no open head, so that the site is skipped.
        strength: the factor on both vectors, which all sites of an adapter share.
        positions: the tokens that the edit acts on; the hook sees to that.
        deterministic: whether the gates have their value in eval mode in training mode too, with gradients.
        dropout: share of the heads whose edit is left out of a pass in training mode.
    """

    deterministic = False
    dropout = 0.0

    def __init__(
        self, site: HeadSite, config: EditConfig, device: torch.device, strength: Strength | None = None
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.groups, self.path = site.heads, site.head_dim, site.groups, site.path
        self.shared = config.gates == "shared"
        self.distribution = HardConcrete(config.temperature, *config.stretch)
        self.expectation = config.eval_gate == "expectation"
        self.idle = False
        self.positions = config.positions
        self.strength = Strength() if strength is None else strength
        self.vectors, self.gates = NamedParameters(0.0, config.init_std), NamedParameters(config.gate_init, 0.0)
        for vector in VECTORS if config.vectors == "both" else (config.vectors,):
            self.vectors.add(vector, (self.heads, self.head_dim), device)
            if config.gates == "separate" or (self.shared and not len(self.gates)):
                self.gates.add(_gate_name(vector), (self.heads,), device)
        shape = (self.heads, self.head_dim, [*self.vectors, *self.gates], self.shared)
        self._traits = repr((*shape, self.distribution, self.expectation))  # a text, whose hash is computed once

    @property
    def draws(self) -> bool:
        """Whether the gates, and the heads that dropout leaves out, are drawn in each pass."""
        return self.training and not self.deterministic

    def gate(self, vector: str) -> nn.Parameter | None:
        """The gate logits log α that act on a vector, [heads]; None where it has no gate."""
        owner = next(iter(self.vectors)) if self.shared else vector
        name = _gate_name(owner)
        found: nn.Parameter | None = self.gates.get(name)
        return found

    def gated_vectors(self) -> list[str]:
        """The vectors that own a gate: both, the first of them where they share it, none without gates."""
        return [vector for vector in self.vectors if _gate_name(vector) in self.gates]

    def vectors_of(self, owner: str) -> tuple[str, ...]:
        """The vectors that the gate owned by one of them acts on."""
        return tuple(self.vectors) if self.shared else (owner,)

    def gate_logits(self, vector: str | None) -> list[nn.Parameter]:
        """The gate logits that act on one vector or on both, each once, [heads]."""
        found = [self.gate(name) for name in self.vectors if vector in (None, name)]
        return list({id(gate): gate for gate in found if gate is not None}.values())

    def values(self) -> dict[str, Tensor]:
        """The tensors of vectors and gates by name, fetched where they are offloaded."""
        modules = self._modules  # read in every pass at every site, where the usual access costs as much again
        return modules["vectors"].forward() | modules["gates"].forward()  # type: ignore[union-attr, no-any-return]

    def check_whole(self) -> None:
        """Raises a HeadEditError where this process has only a part of the vectors or gates."""
        for parameters in (self.vectors, self.gates):
            parameters.check_whole(f"{self.path}.")

    def gate_values(self) -> dict[str, Tensor]:
        """The deterministic gate of each vector, [heads]; ones where it has no gate."""
        values = self.values()
        gates = _gates([self], [values])
        if gates is None:
            gates = next(iter(values.values())).new_ones(1, 1, self.heads)
        return dict(zip(self.vectors, gates[0].expand(len(self.vectors), -1).unbind(), strict=True))

    def is_open(self, vector: str) -> Tensor:
        """Which heads have an open gate on a vector, [heads]: the rectified gate is above 0, or there is none."""
        gate = self.gate(vector)
        if gate is None:
            return torch.ones(self.heads, dtype=torch.bool)
        return self.distribution.clip(gate) > 0

    def effective(self) -> dict[str, Tensor]:
        """The effective value of each vector in eval mode, strength · gate · vector, [heads, head_dim]."""
        values = _effective([self], [self.values()], strength=self.strength.factor)
        return dict(zip(self.vectors, values[0].unbind(), strict=True))

    def scale_and_offset(self, dial: Strength | None = None) -> tuple[Tensor, Tensor]:
        """The factor on the site's input in eval mode and the offset added to it, each [heads * head_dim].

        Args:
            dial: the strength; None for the edit's own.
        """
        strength = self.strength if dial is None else dial
        ((scale, offset),) = _affine([self], [self.values()], strength=strength.factor)
        like = next(vector for vector in (scale, offset) if vector is not None)
        return torch.ones_like(like) if scale is None else scale, torch.zeros_like(like) if offset is None else offset

    def affine(self, strength: Tensor | None, group: Any = None) -> Affine:
        """The affine map of this site alone; where its gates are drawn, again at each call.

        Args:
            strength: the factor on both vectors, a scalar; None for 1.
            group: the processes that draw the same gates; None for this one alone.
        """
        values = self.values()
        return _affine([self], [values], gate_noise([self], [values], group) if self.draws else None, strength)[0]

    def forward(self, z: Tensor, affine: Affine | None = None, part: Part | None = None) -> Tensor:
        """The edited input of the projection, in the shape and dtype it came in.

        Computed in the parameters' precision and rounded once.

        Args:
            z: the input, or the part of its last dimension that this process has.
            affine: the map, where it was computed before, as together with those of other sites; see ``affine_all``.
            part: which part of the input that is; None for all.

        Raises:
            HeadEditError: the edit is on the meta device and the input is not, or the input has another width.
        """
        scale, offset = self.affine(self.strength.factor) if affine is None else affine
        if not z.is_meta and any(vector is not None and vector.is_meta for vector in (scale, offset)):
            raise HeadEditError(
                f"{self.path}: its edit is on the meta device, where it has no values, and the model is not. Call "
                "model.headedit.to_empty(device=...) for fresh edits, which change nothing until they are trained, or "
                "load a state dict that has their values with assign=True."
            )
        shape = heads_shape(z, self) if part is None else z.shape[-1:]
        if part is not None:
            scale, offset = take((scale, offset), part)
        return apply_affine(z, broadcast_to_heads(scale, z, shape), broadcast_to_heads(offset, z, shape))

    @torch.no_grad()
    def set_head(self, head: int, scale: Tensor, offset: Tensor | None) -> None:
        """Writes the edit of one head by hand; see ``HeadEdits.set_head``.

        Args:
            head: index of the head.
            scale: factor, one number or [head_dim]; 1 everywhere leaves it out.
            offset: [head_dim]; None leaves it out.

        Raises:
            HeadEditError: the edits have no vector of a kind that is given.
        """
        values = {"scale": scale - 1.0, "offset": offset}
        given = {"scale": bool((scale != 1.0).any()), "offset": offset is not None}
        for name in VECTORS:
            if given[name] and name not in self.vectors:
                raise HeadEditError(
                    f"These edits have no {name}: they were made with vectors='{next(iter(self.vectors))}'."
                )
        self.idle = False
        for name, vector in self.vectors.items():
            vector[head] = values[name] if given[name] else 0.0
            gate = self.gate(name)
            if gate is not None:
                is_open = any(given.values()) if self.shared else given[name]
                gate[head] = SATURATED if is_open else -SATURATED

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self.idle = False  # the gates that are loaded may be open
        super()._load_from_state_dict(*args, **kwargs)


def affine_all(edits: Sequence[SiteEdit], strength: Tensor | None = None, group: Any = None) -> list[Affine]:
    """The affine maps of sites, those of a kind computed together, and all gates that are drawn at once.

    Args:
        edits: of the sites.
        strength: the factor on all vectors, a scalar; None for 1.
        group: the processes that draw the same gates; None for this one alone.
    """
    values = [edit.values() for edit in edits]
    noise = gate_noise(edits, values, group)
    kinds: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(_kinds(edits, values)):
        kinds.setdefault(kind, []).append(i)
    found: dict[int, Affine] = {}
    for members in kinds.values():
        alike, tensors_of = [edits[i] for i in members], [values[i] for i in members]
        of_alike = _affine(alike, tensors_of, noise if alike[0].draws else None, strength)
        found |= zip(members, of_alike, strict=True)
    return [found[i] for i in range(len(edits))]


def _kinds(edits: Sequence[SiteEdit], values: Sequence[Values]) -> list[Hashable]:
    """For each edit the traits that it must share with others to be computed together with them."""
    own = [(edit._traits, edit.draws, edit.dropout) for edit in edits]
    gradients = torch.is_grad_enabled()  # a site that is frozen must stay out of the graph
    if not gradients and len({(v.device, v.dtype) for of in values for v in of.values()}) == 1:
        return [*own]
    tensors = ([(v.device, v.dtype, gradients and v.requires_grad) for v in of.values()] for of in values)
    return [(*traits, *found) for traits, found in zip(own, tensors, strict=True)]


def _affine(
    edits: Sequence[SiteEdit],
    values: Sequence[Values],
    noise: Mapping[SiteEdit, Tensor] | None = None,
    strength: Tensor | None = None,
) -> list[Affine]:
    """The affine maps of sites of one kind; without noise, the gates have their value in eval mode."""
    vectors = _effective(edits, values, noise, strength).unbind(1)
    effective = (vector.flatten(1) for vector in vectors)  # [sites, width] each
    flat = dict(zip(edits[0].vectors, effective, strict=True))
    none: list[Tensor | None] = [None] * len(edits)
    scales = (1 + flat["scale"]).unbind() if "scale" in flat else none
    offsets = flat["offset"].unbind() if "offset" in flat else none
    return list(zip(scales, offsets, strict=True))


def _effective(
    edits: Sequence[SiteEdit],
    values: Sequence[Values],
    noise: Mapping[SiteEdit, Tensor] | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """Strength · gate · vector of all vectors at once, [sites, vectors, heads, head_dim]."""
    vectors = _stack(values, list(edits[0].vectors))
    factor = _gates(edits, values, noise)
    if factor is None:
        return vectors if strength is None else strength * vectors
    if strength is not None:
        factor = factor * strength
    return factor.unsqueeze(-1) * vectors


def _gates(
    edits: Sequence[SiteEdit], values: Sequence[Values], noise: Mapping[SiteEdit, Tensor] | None = None
) -> Tensor | None:
    """All gates at once, [sites, vectors, heads], or [sites, 1, heads] where vectors share them or have none.

    With noise they are drawn, and those of heads that dropout leaves out are 0. None for ones.
    """
    first = edits[0]
    names, distribution = list(first.gates), first.distribution
    if not names and (noise is None or not first.dropout):
        return None
    if noise is None:
        log_alpha = _stack(values, names)
        return distribution.expectation(log_alpha) if first.expectation else distribution.clip(log_alpha)
    numbers = [noise[edit] for edit in edits]
    drawn = (torch.cat(numbers) if len(numbers) > 1 else numbers[0]).view(len(edits), -1, first.heads)
    gates = distribution.sample(_stack(values, names), drawn[:, : len(names)]) if names else None
    if not first.dropout:
        return gates
    kept = (drawn[:, len(names) :] >= first.dropout).to(drawn.dtype) / (1 - first.dropout)
    return kept if gates is None else gates * kept


def _stack(values: Sequence[Values], names: Sequence[str]) -> Tensor:
    """Tensors of the sites, [sites, names, ...]."""
    tensors = [of[name] for of in values for name in names]
    stacked = torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)
    return stacked.view(len(values), len(names), *stacked.shape[1:])


def _gate_name(vector: str) -> str:
    return f"{vector}_gate"
