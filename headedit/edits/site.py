"""The edit of one site: z' = (1 + g_m·m) ⊙ z + g_a·a, a head at a time, in one fused multiply-add.

JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), section 3: m is ``scale``, a is ``offset``.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from headedit.edits.config import EditConfig
from headedit.edits.gates import SATURATED, HardConcrete
from headedit.errors import HeadEditError
from headedit.specs import HeadSite

VECTORS = ("offset", "scale")


class SiteEdit(nn.Module):
    """Vectors and gates for the heads of one site.

    Parameters:
        offset, scale: [heads, head_dim]; one of them is None where the config leaves it out.
        offset_gate, scale_gate: log α, [heads]; with a shared gate only ``offset_gate`` is there and serves
            both, without gates both are None.

    Fields:
        idle: True where hardening left no open head, so that there is nothing to apply.
        strength: factor on both vectors, a scalar; None for 1.
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

    def gates(self) -> dict[str, Tensor]:
        """The deterministic gate of each vector that is there, [heads]; ones where it has no gate."""
        return {kind: self._gate(self.log_alpha(kind), sample=False) for kind in self.vectors}

    def is_open(self, vector: str) -> Tensor:
        """Which heads have an open gate on a vector, [heads]: the rectified gate is above 0, or there is none."""
        log_alpha = self.log_alpha(vector)
        if log_alpha is None:
            return torch.ones(self.heads, dtype=torch.bool)
        return self.distribution.clip(log_alpha) > 0

    def open_probabilities(self, vector: str | None) -> list[Tensor]:
        """P(g ≠ 0) of the gates on one vector or on both, a tensor [heads] for each set of gates."""
        kinds = [kind for kind in self.vectors if vector in (None, kind)]
        gates = {id(gate): gate for gate in map(self.log_alpha, kinds) if gate is not None}
        return [self.distribution.open_probability(gate) for gate in gates.values()]

    def forward(self, z: Tensor) -> Tensor:
        """The edited input of the projection, in the shape and dtype it came in.

        Computed in the parameters' precision and rounded once.
        """
        scale, offset = self.scale_and_offset(sample=self.training)
        shape = heads_shape(z, self.heads, self.head_dim, self.path)
        return torch.addcmul(offset.to(z.device).view(shape), z, scale.to(z.device).view(shape)).to(z.dtype)

    def acting(self, *, sample: bool = False) -> dict[str, Tensor]:
        """What acts of each vector that is there, strength · gate · vector, [heads, head_dim].

        Args:
            sample: with gates drawn at random, as in training, instead of their value in eval mode.
        """
        acting: dict[str, Tensor] = {}
        gate = None
        for kind in self.vectors:
            if gate is None or not self.shared:
                gate = self._gate(self.log_alpha(kind), sample=sample)
                gate = gate if self.strength is None else gate * self.strength
            acting[kind] = gate[:, None] * getattr(self, kind)
        return acting

    def scale_and_offset(self, *, sample: bool = False) -> tuple[Tensor, Tensor]:
        """The factor on the site's input and what is added to it, each [heads * head_dim]; see ``acting``."""
        acting = {kind: rearrange(v, "heads width -> (heads width)") for kind, v in self.acting(sample=sample).items()}
        zero = next(iter(acting.values())).new_zeros(())
        scale = 1 + acting["scale"] if "scale" in acting else (zero + 1).expand(self.heads * self.head_dim)
        offset = acting["offset"] if "offset" in acting else zero.expand(self.heads * self.head_dim)
        return scale, offset

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

    def _gate(self, log_alpha: Tensor | None, *, sample: bool) -> Tensor:
        if log_alpha is None:
            vector: Tensor = getattr(self, self.vectors[0])
            return vector.new_ones(self.heads)
        if sample:
            return self.distribution.sample(log_alpha)
        return self.distribution.expectation(log_alpha) if self.expectation else self.distribution.clip(log_alpha)


def heads_shape(z: Tensor, heads: int, head_dim: int, path: str) -> tuple[int, ...]:
    """The last dimensions of a site's input that its heads fill: one of them, or two, (groups, width / groups).

    Raises:
        HeadEditError: it has another width.
    """
    width = heads * head_dim
    if z.shape[-1] == width:
        return (width,)
    if z.dim() > 1 and z.shape[-2] * z.shape[-1] == width:
        return tuple(z.shape[-2:])
    raise HeadEditError(
        f"{path} was given {tuple(z.shape)}, but its spec says {heads} heads of width {head_dim} ({width} in the last "
        "dimension). Correct the spec."
    )
