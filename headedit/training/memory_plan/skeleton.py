"""A model without weights: its modules with edits, on the meta device, as a run would have them."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from headedit.edits import EditConfig, HeadEdits, attach
from headedit.hf.building import build_without_weights
from headedit.hf.layers import stack_of
from headedit.specs import Spec
from headedit.training.memory_plan.packed import pack
from headedit.training.memory_plan.setup import DTYPES, Setup
from headedit.training.memory_plan.tensor_parallel import split_over_devices

_IMPLEMENTATIONS = {"eager": "eager", "sdpa": "sdpa", "flash": "sdpa"}  # FlashAttention: as sdpa without a mask


class Skeleton:
    """The model of a config, frozen and in training mode, with edits; where devices share every layer, what one has.

    Args:
        config: of a causal LM of transformers.
        setup: dtype, quantization and attention are taken from it, and how many share every layer.
        edits: the shape of the edits.
        spec: where the heads are; by default found by the model type.

    Fields:
        model, edits: on the meta device.
        layers: the layers of the text decoder; empty where the edited ones are in no list, or in several.

    Raises:
        HeadEditError: transformers cannot build the model, or edits cannot be attached to it.
    """

    def __init__(self, config: Any, setup: Setup, edits: EditConfig, spec: "Spec | str | None") -> None:
        self.model = _build(config, setup)
        self.edits: HeadEdits = attach(self.model, spec, edits)
        self.edits.module.to("meta")
        if setup.split == "tensor_parallel" and setup.devices > 1:
            split_over_devices(self.model, self.edits, setup.devices)
        if setup.quantization is not None:
            pack(self.model, setup.quantization)
        self.layers = _layers(self.model, self.edits)

    def weights(self) -> list[nn.Parameter]:
        """The parameters of the base model, each once."""
        ours = {id(p) for p in self.trained()}
        return [p for p in self.model.parameters() if id(p) not in ours]

    def base(self) -> list[Tensor]:
        """The weights and buffers of the base model, each once."""
        return [*self.weights(), *self.model.buffers()]

    def trained(self) -> list[nn.Parameter]:
        """The parameters of the edits."""
        return list(self.edits.module.parameters())


def _build(config: Any, setup: Setup) -> nn.Module:
    options: dict[str, Any] = {"dtype": DTYPES[setup.dtype]}
    if setup.attention is not None:
        options["attn_implementation"] = _IMPLEMENTATIONS[setup.attention]
    return build_without_weights(config, **options).train().requires_grad_(False)


def _layers(model: nn.Module, edits: HeadEdits) -> list[nn.Module]:
    stacks = {stack_of(model, site.path) for site in edits.sites}
    name = stacks.pop() if len(stacks) == 1 else None
    if name is None:
        return []
    stack = model.get_submodule(name)
    assert isinstance(stack, nn.ModuleList)
    return list(stack)


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
