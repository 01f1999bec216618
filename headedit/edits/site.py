"""The edit of one site: z' = (1 + g_m·m) ⊙ z + g_a·a, a head at a time, in one fused multiply-add.

JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), section 3: m is ``scale``, a is ``offset``.
"""

import torch
from torch import Tensor, nn

from headedit.edits.config import EditConfig
from headedit.edits.gates import SATURATED, HardConcrete
from headedit.edits.kept import Kept
from headedit.edits.multiply_add import multiply_add
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
        self._kept: Kept[tuple[Tensor | None, Tensor | None]] = Kept()
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

    def set_strength(self, value: float) -> None:
        """Sets the factor on both vectors; see ``HeadEdits.strength``."""
        self.strength = None if value == 1 else next(self.parameters()).new_tensor(float(value))
        self._kept.drop()

    def gates(self) -> dict[str, Tensor]:
        """The deterministic gate of each vector that is there, [heads]; ones where it has no gate."""
        gates = self._gates(sample=False)
        if gates is None:
            vector: Tensor = getattr(self, self.vectors[0])
            gates = vector.new_ones(1, self.heads)
        return dict(zip(self.vectors, gates.expand(len(self.vectors), -1).unbind(), strict=True))

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
        self._kept.drop()
        return super().train(mode)

    def forward(self, z: Tensor) -> Tensor:
        """The edited input of the projection, in the shape and dtype it came in.

        Computed in the parameters' precision and rounded once. In eval mode the factor and what is added are computed
        once until a parameter changes. A write through ``.data`` is no change that can be seen: call ``eval`` after it.
        """
        shape = heads_shape(z, self.heads, self.head_dim, self.path)
        scale, offset = self._scale_and_offset()
        return multiply_add(z, _placed(scale, z, shape), _placed(offset, z, shape))

    def acting(self, *, sample: bool = False) -> dict[str, Tensor]:
        """What acts of each vector that is there, strength · gate · vector, [heads, head_dim].

        Args:
            sample: with gates drawn at random, as in training, instead of their value in eval mode.
        """
        return dict(zip(self.vectors, self._acting(sample=sample).unbind(), strict=True))

    def scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """The factor on the site's input in eval mode and what is added to it, each [heads * head_dim]."""
        scale, offset = self._in_eval_mode()
        like = next(vector for vector in (scale, offset) if vector is not None)
        return torch.ones_like(like) if scale is None else scale, torch.zeros_like(like) if offset is None else offset

    def _scale_and_offset(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.training:
            return self._in_eval_mode()
        return _line(self.vectors, self._acting(sample=True))

    def _in_eval_mode(self) -> tuple[Tensor | None, Tensor | None]:
        parameters = [p for p in self._parameters.values() if p is not None]
        return self._kept.get(parameters, self._compute_in_eval_mode)

    def _compute_in_eval_mode(self) -> tuple[Tensor | None, Tensor | None]:
        scale, offset = _line(self.vectors, self._acting(sample=False))
        return scale, None if offset is None else offset.clone()  # by itself: what acts of the scale need not be kept

    def _acting(self, *, sample: bool) -> Tensor:
        """What acts of all vectors at once, [vectors, heads, head_dim]."""
        acting = _stack([getattr(self, kind) for kind in self.vectors])
        factor = self._gates(sample=sample)
        if self.strength is not None:
            factor = self.strength if factor is None else factor * self.strength
        if factor is None:
            return acting
        return (factor.unsqueeze(-1) if factor.dim() else factor) * acting

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

    def _gates(self, *, sample: bool) -> Tensor | None:
        """All gates at once, [vectors, heads], or [1, heads] where they share them; None without gates."""
        logits = [getattr(self, f"{kind}_gate") for kind in self.gated_vectors()]
        if not logits:
            return None
        log_alpha = _stack(logits)
        if sample:
            return self.distribution.sample(log_alpha)
        return self.distribution.expectation(log_alpha) if self.expectation else self.distribution.clip(log_alpha)


def _placed(vector: Tensor | None, z: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A vector [heads * head_dim] on the device of z, in the shape of its last dimensions."""
    if vector is None:
        return None
    vector = vector.to(z.device)
    return vector if len(shape) == 1 else vector.view(shape)


def _stack(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _line(vectors: tuple[str, ...], acting: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Factor and offset, each [heads * head_dim], of what acts; None for a factor of 1 and an offset of 0."""
    flat = dict(zip(vectors, acting.flatten(1).unbind(), strict=True))
    return 1 + flat["scale"] if "scale" in flat else None, flat.get("offset")


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
