"""The record of a merge: which weights and config values it changed, what they were, and what they became."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headedit.errors import HeadEditError


@dataclass
class TensorChange:
    """One tensor that a merge changes.

    Fields:
        module: the module that has it as a parameter.
        name: its name in the module.
        before: its values before the merge.
        after: its values with the edits.
        version: the parameter's count of in-place writes when ``after`` was put; None where it is not known.
        sums: of the values then.
    """

    module: nn.Module
    name: str
    before: Tensor
    after: Tensor
    version: int | None = None
    sums: tuple[float, float] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "version": -1 if self.is_written() else None}  # a copy of a tensor counts from 0 again

    def parameter(self) -> nn.Parameter:
        """The parameter that is at this place."""
        found = self.module._parameters[self.name]
        assert found is not None
        return found

    def put(self, values: Tensor) -> None:
        """Sets the values, in the dtype and on the device that the parameter was moved to."""
        parameter = self.parameter()
        parameter.data = values.to(parameter.device, parameter.dtype)

    def watch(self) -> None:
        """Notes the values that are there, so that ``is_written`` tells whether others were written."""
        parameter = self.parameter()
        self.version, self.sums = parameter._version, _sums(parameter)

    def is_written(self) -> bool:
        """Whether other values were written to the parameter in place since ``watch``."""
        parameter = self.parameter()
        return self.version is not None and parameter._version > self.version and _sums(parameter) != self.sums


@dataclass
class WeightChange:
    """A change of a model's weights and config that can be applied and reverted, bit for bit.

    It refers to the model's own modules; copied together with the model, it refers to those of the copy. A model that
    is moved to another dtype or device in between stays there.

    Fields:
        adapter_names: the adapters whose edits are in the new weights.
        tensors: the changed parameters.
        biases: each module that had no bias, with the bias it gets.
        config: the config of the text decoder.
        keys: the config switches that become True, with their values before.
        applied: whether the new weights are in place.
    """

    adapter_names: list[str]
    tensors: list[TensorChange]
    biases: list[tuple[nn.Module, nn.Parameter]]
    config: Any
    keys: dict[str, Any]
    applied: bool = field(default=False, init=False)

    def apply(self) -> None:
        """Puts the new weights and config values in place; does nothing where they are."""
        if self.applied:
            return
        for change in self.tensors:
            change.put(change.after)
            change.watch()
        for module, bias in self.biases:
            weight = module._parameters["weight"]
            assert weight is not None
            bias.data = bias.data.to(weight.device, weight.dtype)
            module._parameters["bias"] = bias
        for key in self.keys:
            setattr(self.config, key, True)
        self.applied = True

    def revert(self) -> None:
        """Puts the original weights and config values back; does nothing where they are.

        Raises:
            HeadEditError: the merged weights were written to, which would be lost.
        """
        if not self.applied:
            return
        self._check_unwritten()
        for change in self.tensors:
            change.put(change.before)
        self.biases = [(module, _bias_of(module, bias)) for module, bias in self.biases]
        for module, _ in self.biases:
            module._parameters["bias"] = None
        for key, value in self.keys.items():
            setattr(self.config, key, value)
        self.applied = False

    def _check_unwritten(self) -> None:
        for change in self.tensors:
            if change.is_written():
                raise HeadEditError(
                    f"The weight of a {type(change.module).__name__} was written to while the edits were merged into "
                    "it, as by load_state_dict or an optimiser, and unmerging would lose that. Keep the merged model: "
                    "merge_and_unload(); or load the weights after unmerging."
                )


@torch.no_grad()
def _sums(values: Tensor) -> tuple[float, float] | None:
    """The sum and the Euclidean norm of a tensor, by which other values are told from the same; None without values."""
    if values.is_meta:
        return None
    return float(values.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(values, dtype=torch.float64))


def tensor_change(module: nn.Module, name: str, after: Tensor) -> TensorChange:
    """The change of a parameter of a module from its values now to others."""
    parameter = module._parameters[name]
    assert parameter is not None
    return TensorChange(module, name, parameter.data, after)


def _bias_of(module: nn.Module, bias: nn.Parameter) -> nn.Parameter:
    """The bias that a module has now, which is another object where moving the model made new parameters."""
    found = module._parameters["bias"]
    return bias if found is None else found
