"""The edit of one site: z' = (1 + g_m·m) ⊙ z + g_a·a, a head at a time, in one fused multiply-add.

JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), section 3: m is ``scale``, a is ``offset``.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from headedit.edits.affine import multiply_add
from headedit.edits.config import EditConfig
from headedit.edits.gates import SATURATED, HardConcrete
from headedit.edits.kept import Kept
from headedit.edits.placing import heads_shape, placed
from headedit.errors import HeadEditError
from headedit.specs import HeadSite

VECTORS = ("offset", "scale")

Line = tuple[Tensor | None, Tensor | None]
"""The factor on a site's input and what is added to it, each [heads * head_dim]; None for 1 and for 0."""


class SiteEdit(nn.Module):
    """Vectors and gates for the heads of one site.

    Parameters:
        offset, scale: [heads, head_dim]; one of them is None where the config leaves it out.
        offset_gate, scale_gate: log α, [heads]; with a shared gate only ``offset_gate`` is there and serves
            both, without gates both are None.

    Fields:
        idle: True where hardening left no open head, so that there is nothing to apply.
        strength: factor on both vectors, a scalar; None for 1.
        kept: what acts in eval mode, until a parameter changes.
    """

    def __init__(self, site: HeadSite, config: EditConfig, device: torch.device) -> None:
        super().__init__()
        self.heads, self.head_dim = site.heads, site.head_dim
        self.path = site.path
        self.vectors = VECTORS if config.vectors == "both" else (config.vectors,)
        self.shared = config.gates == "shared"
        self.distribution = HardConcrete(config.temperature, *config.stretch)
        self.expectation = config.eval_gate == "expectation"
        self.idle = False
        self.kept: Kept[Line] = Kept()
        self.strength: Tensor | None
        self.register_buffer("strength", None, persistent=False)
        for kind in VECTORS:
            there = kind in self.vectors
            gated = there and config.gates != "none" and not (self.shared and kind != self.vectors[0])
            shape = (self.heads, self.head_dim)
            vector = torch.zeros(shape, device=device, dtype=torch.float32) if there else None
            if vector is not None and config.init_std:
                vector.normal_(std=config.init_std)
            gate = None
            if gated:
                gate = torch.full((self.heads,), config.gate_init, device=device, dtype=torch.float32)
            self.register_parameter(kind, None if vector is None else nn.Parameter(vector))
            self.register_parameter(f"{kind}_gate", None if gate is None else nn.Parameter(gate))

    def log_alpha(self, kind: str) -> nn.Parameter | None:
        """The gate logits that act on a vector, [heads]; None where it has no gate."""
        owner = self.vectors[0] if self.shared else kind
        gate: nn.Parameter | None = getattr(self, f"{owner}_gate")
        return gate

    def gated_vectors(self) -> list[str]:
        """The vectors that own a gate: both, one of them where they share it, none without gates."""
        return [kind for kind in VECTORS if getattr(self, f"{kind}_gate") is not None]

    def under(self, kind: str) -> tuple[str, ...]:
        """The vectors that the gate owned by one of them acts on."""
        return self.vectors if self.shared else (kind,)

    def layout(self) -> Hashable:
        """What edits must have in common so that ``lines`` can take them together."""
        parameters = [
            (name, p.device, p.dtype, p.requires_grad) for name, p in self._parameters.items() if p is not None
        ]
        same = (self.heads, self.head_dim, self.shared, self.distribution, self.strength is None)
        return (*same, *parameters)

    def set_strength(self, value: float) -> None:
        """Sets the factor on both vectors; see ``HeadEdits.strength``."""
        self.strength = None if value == 1 else next(self.parameters()).new_tensor(float(value))
        self.kept.drop()

    def gates(self) -> dict[str, Tensor]:
        """The deterministic gate of each vector that is there, [heads]; ones where it has no gate."""
        gates = _gates([self])
        if gates is None:
            vector: Tensor = getattr(self, self.vectors[0])
            gates = vector.new_ones(1, 1, self.heads)
        return dict(zip(self.vectors, gates[0].expand(len(self.vectors), -1).unbind(), strict=True))

    def is_open(self, vector: str) -> Tensor:
        """Which heads have an open gate on a vector, [heads]: the rectified gate is above 0, or there is none."""
        log_alpha = self.log_alpha(vector)
        if log_alpha is None:
            return torch.ones(self.heads, dtype=torch.bool)
        return self.distribution.clip(log_alpha) > 0

    def log_alphas(self, vector: str | None) -> list[Tensor]:
        """The gate logits that act on one vector or on both, each once, [heads]."""
        kinds = [kind for kind in self.vectors if vector in (None, kind)]
        return list({id(gate): gate for gate in map(self.log_alpha, kinds) if gate is not None}.values())

    def train(self, mode: bool = True) -> "SiteEdit":
        """Sets the mode, and has the edit computed anew; see ``Kept``."""
        self.kept.drop()
        return super().train(mode)

    def forward(self, z: Tensor, line: Line | None = None) -> Tensor:
        """The edited input of the projection, in the shape and dtype it came in.

        Computed in the parameters' precision and rounded once. In eval mode the factor and what is added are computed
        once until a parameter changes. A write through ``.data`` is no change that can be seen: call ``eval`` after it.

        Args:
            z: the input.
            line: factor and offset, where they are there already; see ``Together``.
        """
        shape = heads_shape(z, self.heads, self.head_dim, self.path)
        scale, offset = self.line() if line is None else line
        return multiply_add(z, placed(scale, z, shape), placed(offset, z, shape))

    def acting(self) -> dict[str, Tensor]:
        """What acts in eval mode of each vector that is there, strength · gate · vector, [heads, head_dim]."""
        return dict(zip(self.vectors, _acting([self])[0].unbind(), strict=True))

    def scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """The factor on the site's input in eval mode and what is added to it, each [heads * head_dim]."""
        scale, offset = self._in_eval_mode()
        like = next(vector for vector in (scale, offset) if vector is not None)
        return torch.ones_like(like) if scale is None else scale, torch.zeros_like(like) if offset is None else offset

    def line(self) -> Line:
        """The factor and the offset of this site alone; in training mode the gates are drawn anew at each call."""
        if self.training:
            return lines([self], uniform([self]))[0]
        return self._in_eval_mode()

    def _in_eval_mode(self) -> Line:
        return self.kept.get(self._parameters.values(), self._compute_in_eval_mode)

    def _compute_in_eval_mode(self) -> Line:
        ((scale, offset),) = lines([self])
        return scale, None if offset is None else offset.clone()  # by itself: what acts of the scale need not be kept

    @torch.no_grad()
    def set_head(self, head: int, scale: float, offset: Tensor | None) -> None:
        """Writes the edit of one head by hand; see ``HeadEdits.set_head``."""
        self.idle = False
        values = {"scale": scale - 1.0, "offset": offset}
        acts = {"scale": scale != 1.0, "offset": offset is not None}
        for kind in VECTORS:
            if acts[kind] and kind not in self.vectors:
                raise HeadEditError(f"These edits have no {kind}: they were made with vectors='{self.vectors[0]}'.")
        for kind in self.vectors:
            vector, gate = getattr(self, kind), self.log_alpha(kind)
            vector[head] = values[kind] if acts[kind] else 0.0
            if gate is not None:
                is_open = any(acts.values()) if self.shared else acts[kind]
                gate[head] = SATURATED if is_open else -SATURATED


def uniform(edits: Sequence[SiteEdit]) -> dict[SiteEdit, Tensor]:
    """Numbers from [0, 1) to draw the gates of sites by, [gates] each; sites without gates have none.

    They are drawn at once, and on a CPU are those that the sites would draw one after the other.
    """
    alike: dict[tuple[torch.device, torch.dtype], dict[SiteEdit, int]] = {}
    for edit in edits:
        gates = [getattr(edit, f"{kind}_gate") for kind in edit.gated_vectors()]
        if gates:
            alike.setdefault((gates[0].device, gates[0].dtype), {})[edit] = len(gates) * edit.heads
    drawn: dict[SiteEdit, Tensor] = {}
    for (device, dtype), counts in alike.items():
        numbers = torch.rand(sum(counts.values()), device=device, dtype=dtype)
        drawn |= zip(counts, torch.split(numbers, list(counts.values())), strict=True)
    return drawn


def lines(edits: Sequence[SiteEdit], drawn: Mapping[SiteEdit, Tensor] | None = None) -> list[Line]:
    """The factor and the offset of sites whose edits are alike in all but their values, computed at once.

    Args:
        edits: of one ``layout``.
        drawn: of ``uniform``, to draw the gates by, as in training; None for their value in eval mode.
    """
    vectors = edits[0].vectors
    flat = dict(zip(vectors, (v.flatten(1) for v in _acting(edits, drawn).unbind(1)), strict=True))
    none: list[Tensor | None] = [None] * len(edits)
    scales = (1 + flat["scale"]).unbind() if "scale" in flat else none
    offsets = flat["offset"].unbind() if "offset" in flat else none
    return list(zip(scales, offsets, strict=True))


def _acting(edits: Sequence[SiteEdit], drawn: Mapping[SiteEdit, Tensor] | None = None) -> Tensor:
    """What acts of all vectors at once, [sites, vectors, heads, head_dim]."""
    acting = _stack(edits, edits[0].vectors)
    factor = _gates(edits, drawn)
    strengths = [edit.strength for edit in edits if edit.strength is not None]
    if strengths:
        strength = torch.stack(strengths).view(-1, 1, 1)
        factor = strength if factor is None else factor * strength
    return acting if factor is None else factor.unsqueeze(-1) * acting


def _gates(edits: Sequence[SiteEdit], drawn: Mapping[SiteEdit, Tensor] | None = None) -> Tensor | None:
    """All gates at once, [sites, vectors, heads], or [sites, 1, heads] where they share them; None without gates."""
    first = edits[0]
    gated = first.gated_vectors()
    if not gated:
        return None
    log_alpha = _stack(edits, [f"{kind}_gate" for kind in gated])
    if drawn is not None:
        numbers = [drawn[edit] for edit in edits]
        joined = torch.cat(numbers) if len(numbers) > 1 else numbers[0]
        return first.distribution.sample(log_alpha, joined.view_as(log_alpha))
    return first.distribution.expectation(log_alpha) if first.expectation else first.distribution.clip(log_alpha)


def _stack(edits: Sequence[SiteEdit], names: Sequence[str]) -> Tensor:
    """Parameters of the sites, [sites, names, ...]."""
    tensors = [getattr(edit, name) for edit in edits for name in names]
    stacked = torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)
    return stacked.view(len(edits), len(names), *stacked.shape[1:])
