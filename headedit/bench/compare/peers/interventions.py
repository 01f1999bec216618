"""Peers that are a few vectors or a small subspace on the outputs of layers, as modules of our own.

They change activations by forward hooks, at every position, so they need no copy of a model's code.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from headedit.edits import EditConfig, attach
from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.hf.layers import stack_of


class _Red(nn.Module):
    """RED: a factor and a summand per coordinate (Wu et al., ACL 2024, arXiv 2402.15179, equation 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden * self.scale + self.offset).to(hidden.dtype)


class _Loreft(nn.Module):
    """LoReFT: h + Rᵀ(W h + b − R h), R with orthonormal rows (Wu et al., arXiv 2404.03592, equation 2)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.project = orthogonal(nn.Linear(width, rank, bias=False), orthogonal_map="householder")
        self.learned = nn.Linear(width, rank)

    def forward(self, hidden: Tensor) -> Tensor:
        states = hidden.float()
        change: Tensor = (self.learned(states) - self.project(states)) @ self.project.weight
        edited: Tensor = (states + change).to(hidden.dtype)
        return edited


def add_red(model: nn.Module) -> nn.Module:
    """Puts RED on the output of every MLP, as its paper does; nothing else of the model is trainable."""
    edits = attach(model, config=EditConfig(sites="mlp"))
    modules = [site.module for site in edits.sites]
    edits.detach()
    return _with(model, [(module, _Red(_width(model))) for module in modules])


def add_loreft(model: nn.Module, rank: int) -> nn.Module:
    """Puts LoReFT on the output of every layer, at every position; nothing else of the model is trainable.

    The paper edits a few positions at both ends of the prompt; which ones is a setting for each task.
    """
    return _with(model, [(layer, _Loreft(_width(model), rank)) for layer in _layers(model)])


def add_biases(model: Any) -> nn.Module:
    """Makes all biases trainable, and gives linear layers that have none a bias of zeros; nothing else is trainable.

    The output head gets none. BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199) trains the biases that a model has;
    many models have none.
    """
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.requires_grad_(True)
        elif isinstance(module, nn.Linear) and module is not head:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_features, dtype=module.weight.dtype))
    return _trainable(model, "biases")


def _with(model: nn.Module, added: list[tuple[nn.Module, nn.Module]]) -> nn.Module:
    """The model with a module applied to the output of each of some others; these alone are trainable."""
    model.requires_grad_(False)
    device = next(model.parameters()).device
    model.peer = nn.ModuleList([change.to(device) for _, change in added])

    def apply(module: nn.Module, args: object, output: Any, change: nn.Module) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    for module, change in added:
        module.register_forward_hook(lambda m, a, output, change=change: apply(m, a, output, change))
    return _trainable(model, "interventions")


def _trainable(model: nn.Module, what: str) -> nn.Module:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise HeadEditError(f"A {type(model).__name__} has no place for {what}.")
    return model


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    edits = attach(model)
    names = {stack_of(model, site.path) for site in edits.sites}
    edits.detach()
    name = names.pop() if len(names) == 1 else None
    if name is None:
        raise HeadEditError(f"The layers of {type(model).__name__} are not in one list, so nothing is put on them.")
    return iter(model.get_submodule(name).children())


def _width(model: Any) -> int:
    return int(text_config(model.config).hidden_size)
