"""The record of a merge: which weights and config values it changed, what they were, and what they became."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class WeightChange:
    """A change of a model's weights and config that can be applied and reverted, bit for bit.

    It refers to the model's own parameters and modules; copied together with the model, it refers to those of the copy.

    Fields:
        adapter_names: the adapters whose edits are in the new weights.
        tensors: each changed parameter with its data before and after.
        biases: each module that had no bias, with the bias it gets.
        config: the config of the text decoder.
        keys: the config switches that become True, with their values before.
    """

    adapter_names: list[str]
    tensors: list[tuple[nn.Parameter, Tensor, Tensor]]
    biases: list[tuple[nn.Module, nn.Parameter]]
    config: Any
    keys: dict[str, Any]

    def apply(self) -> None:
        """Puts the new weights and config values in place."""
        for parameter, _, merged in self.tensors:
            parameter.data = merged
        for module, bias in self.biases:
            module._parameters["bias"] = bias
        for key in self.keys:
            setattr(self.config, key, True)

    def revert(self) -> None:
        """Puts the original weights and config values back."""
        for parameter, original, _ in self.tensors:
            parameter.data = original
        for module, _ in self.biases:
            module._parameters["bias"] = None
        for key, value in self.keys.items():
            setattr(self.config, key, value)


def data_change(module: nn.Module, name: str, merged: Tensor) -> tuple[nn.Parameter, Tensor, Tensor]:
    """A parameter of a module with its data now and the data it is to get, as ``WeightChange.tensors`` holds it."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter, parameter.data, merged
