"""The memory of each of several devices."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from headedit.errors import HeadEditError
from headedit.training.memory_plan.memory import PROCESS
from headedit.training.memory_plan.setup import Setup
from headedit.training.memory_plan.skeleton import Skeleton, size
from headedit.training.memory_plan.step import Step

_GATHERED = 2  # layers that FSDP holds whole: the one that runs, and the next, which is being fetched


@dataclass(frozen=True, kw_only=True)
class Share:
    """The memory of one device, in bytes.

    Fields:
        base: weights and buffers of the base model that it keeps.
        gathered: weights of others that it holds while they are used.
        trained: edits, their gradients and the optimiser.
        saved, working, validation, process: as in ``Plan``.
    """

    base: int
    gathered: int = 0
    trained: int
    saved: int
    working: int
    validation: int
    process: int

    @property
    def computing(self) -> int:
        """Bytes of what passes make: in a step or in validation, whichever takes more."""
        return max(self.saved + self.working, self.validation)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.base + self.gathered + self.trained + self.computing + self.process


def shares(skeleton: Skeleton, own: Skeleton, step: Step, setup: Setup) -> tuple[Share, ...]:
    """The share of each device: whole layers, a part of every layer, or with FSDP of every weight and no activation.

    Args:
        skeleton: the whole model.
        own: what a device has of it, where devices share every layer.
        step: of one process.
        setup: how the devices share the model.

    Raises:
        HeadEditError: the layers are not in one list, so devices cannot share them.
    """
    base, trained = size(skeleton.base()), 4 * size(skeleton.trained())
    computing = {"saved": step.saved, "working": step.peak - step.saved, "validation": step.validation}
    computing |= {"process": PROCESS[setup.device]}
    if setup.devices == 1:
        return (Share(base=base, trained=trained, **computing),)
    if setup.split == "tensor_parallel":
        return (Share(base=size(own.base()), trained=trained, **computing),) * setup.devices
    if not skeleton.layers:
        raise HeadEditError(
            f"The layers of {type(skeleton.model).__name__} are not in one list, so devices cannot share them."
        )
    layers = [size([*layer.parameters(), *layer.buffers()]) for layer in skeleton.layers]
    if setup.split == "fsdp":
        buffers = size(skeleton.model.buffers())
        weights = [size(layer.parameters()) for layer in skeleton.layers]
        outside = base - buffers - sum(weights)
        kept = buffers + sum(-(-tensor.shape[0] // setup.devices) * size([tensor[:1]]) for tensor in skeleton.weights())
        one = Share(base=kept, gathered=outside + _GATHERED * max(weights), trained=trained, **computing)
        return (one,) * setup.devices
    embeddings: Any = skeleton.model.get_input_embeddings()  # type: ignore[operator]
    return _by_layers(layers, base, trained, step, size(embeddings.parameters()), setup)


def _by_layers(layers: list[int], base: int, trained: int, step: Step, first: int, setup: Setup) -> tuple[Share, ...]:
    """Layers in their order, so that the weights are spread evenly; embeddings first, the head last."""
    ends = list(accumulate(layers, initial=first))
    middles = [(before + after) / 2 for before, after in pairwise(ends)]
    places = [min(int(setup.devices * middle / base), setup.devices - 1) for middle in middles]
    found = []
    for device in range(setup.devices):
        last = device == setup.devices - 1
        here = [i for i, place in enumerate(places) if place == device]
        saved = sum(step.layers[i] for i in here) + (step.head if last else 0)
        working = max(step.inside, step.peak - step.saved) if last else step.inside
        weights = sum(layers[i] for i in here) + (first if device == 0 else 0) + (base - ends[-1] if last else 0)
        found.append(
            Share(
                base=weights,
                trained=trained * len(here) // len(layers),
                saved=saved,
                working=working,
                validation=step.validation,
                process=PROCESS[setup.device],
            )
        )
    return tuple(found)
