"""The config of an edit: which layers and sites, which vectors, which gates."""

import re
from dataclasses import dataclass
from typing import Literal

from headedit.errors import HeadEditError
from headedit.io import strict


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """The shape of an edit and of its gates.

    Fields:
        layers: which layers are edited: None for all, a slice such as ``"8:24"`` or ``":4"``, or a list of
            indices; negative ones count from the last edited layer.
        sites: kinds of site: ``attention``, ``linear``, ``mlp``. None for attention, or, in a model that has
            none, for its linear mixer.
        mlp_groups: into how many groups of equal width the input of an MLP's down projection is split; each is
            edited as a head is.
        vectors: ``both``, or only ``offset`` or ``scale`` (the paper's ablations).
        gates: ``separate`` for a gate on each vector of a head, ``shared`` for one gate per head, ``none``
            for vectors without gates.
        eval_gate: the value of a gate in eval mode: ``clip``, the rectified deterministic gate of Louizos
            et al. (2018), which reaches exactly 0 and 1; or ``expectation``, E[g], which JoLA names.
        temperature: β of the hard-concrete distribution.
        stretch: (γ, ζ), the interval that the concrete sample is stretched to.
        gate_init: log α at the start; 0 gives P(g ≠ 0) = 0.69.
        init_std: standard deviation of the vectors at the start. 0 makes a fresh edit the identity bit for
            bit; the paper's value is 1e-3.
    """

    layers: str | list[int] | None = None
    sites: list[str] | None = None
    mlp_groups: int = 1
    vectors: Literal["both", "offset", "scale"] = "both"
    gates: Literal["separate", "shared", "none"] = "separate"
    eval_gate: Literal["clip", "expectation"] = "clip"
    temperature: float = 0.33
    stretch: tuple[float, float] = (-0.1, 1.1)
    gate_init: float = 0.0
    init_std: float = 0.0

    def __post_init__(self) -> None:
        strict.check(self)
        if self.sites == []:
            raise HeadEditError("sites: the list is empty; name at least one kind, such as 'attention'.")
        for kind in self.sites or []:
            strict.convert(Literal["attention", "linear", "mlp"], kind, "sites")
        if self.mlp_groups < 1:
            raise HeadEditError(f"mlp_groups: found {self.mlp_groups}, expected 1 or more.")
        if self.temperature <= 0:
            raise HeadEditError(f"temperature: found {self.temperature}, expected a number above 0.")
        if not (self.stretch[0] < 0 and self.stretch[1] > 1):
            raise HeadEditError(f"stretch: found {self.stretch}, expected γ below 0 and ζ above 1.")
        if self.init_std < 0:
            raise HeadEditError(f"init_std: found {self.init_std}, expected 0 or more.")
        if isinstance(self.layers, str) and not re.fullmatch(r"-?\d*:-?\d*(:\d+)?", self.layers):
            raise HeadEditError(f"layers: found '{self.layers}', expected a slice such as '8:24', or a list.")

    def select_layers(self, available: list[int]) -> list[int]:
        """The layers to edit, out of those that have a site.

        Raises:
            HeadEditError: a layer that has no site is asked for, or none is left.
        """
        last = max(available) + 1
        if self.layers is None:
            return available
        if isinstance(self.layers, str):
            bounds = [int(part) if part else None for part in self.layers.split(":")]
            wanted = [layer for layer in range(last)[slice(*bounds)] if layer in available]
        else:
            wanted = [layer + last if layer < 0 else layer for layer in self.layers]
        missing = [layer for layer in wanted if layer not in available]
        if missing or not wanted:
            what = f"layer {missing[0]} has no site" if missing else "no layer is left"
            raise HeadEditError(f"layers: found {self.layers!r}, but {what}; layers with a site: {_ranges(available)}.")
        return wanted

    @staticmethod
    def from_dict(data: object, where: str) -> "EditConfig":
        """A config from plain data, as in ``headedit_config.json``."""
        return strict.build(EditConfig, data, where)


def _ranges(layers: list[int]) -> str:
    contiguous = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if contiguous else ", ".join(map(str, layers))
