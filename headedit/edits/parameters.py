"""Vectors, or gates, of a site as a module: parameters by name that are never without values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.whole import check_whole


class NamedParameters(nn.ParameterDict):
    """A ParameterDict whose forward pass gives its tensors, so that hooks that fetch offloaded weights act on it.

    Args:
        mean: of fresh values.
        std: their standard deviation; 0 for the mean itself.
    """

    _fresh: tuple[float, float]
    _shapes: dict[str, tuple[int, ...]]

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        object.__setattr__(self, "_fresh", (mean, std))  # a ParameterDict counts attributes as its entries
        object.__setattr__(self, "_shapes", {})

    def forward(self) -> dict[str, Tensor]:
        """The tensors by name."""
        plain = self._parameters  # without those that are parametrised, which only their names lead to
        return dict(plain) if len(plain) == len(self) else {name: self[name] for name in self}  # type: ignore[arg-type]

    def add(self, name: str, shape: tuple[int, ...], device: torch.device) -> None:
        """Adds a fresh float32 parameter, which has values also where accelerate has torch make tensors without."""
        mean, std = self._fresh
        value = torch.tensor(mean, dtype=torch.float32, device=device).repeat(shape)
        self[name] = value.normal_(std=std) if std else value
        self._shapes[name] = shape
        if self[name].is_meta and not value.is_meta:
            self._parameters[name] = nn.Parameter(value)

    def check_whole(self, where: str, *, gathers: bool = False) -> None:
        """Raises a HeadEditError where this process has a part of a parameter; see ``whole.check_whole``.

        Args:
            where: what the names are of, for the message, such as ``layers.0.self_attn.o_proj.``.
            gathers: whether what reads them can put the parts of a ``DTensor`` together.
        """
        for name, value in self.items():
            check_whole(value, self._shapes[name], f"{where}{name}", gathers=gathers)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.check_whole(prefix, gathers=True)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    @torch.no_grad()
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NamedParameters":
        """Moves or casts the parameters; unlike other modules', their values stay under ``to_empty`` as well.

        Parameters that come off the meta device, where they had no values, are fresh.
        """
        before = {name: tensor.detach() for name, tensor in self.named_parameters()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in self.named_parameters():
            if tensor.is_meta:
                continue
            if not before[name].is_meta:
                tensor.data.copy_(before[name])
            else:
                tensor.data.normal_(*self._fresh)
        return self
