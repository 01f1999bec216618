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
        base: weights and buffers of the base model.
        trained: edits, their gradients and the optimiser.
        saved, working, validation, process: as in ``Plan``.
    """

    base: int
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
        return self.base + self.trained + self.computing + self.process


def shares(skeleton: Skeleton, step: Step, setup: Setup) -> tuple[Share, ...]:
    """The share of each device: whole layers, or with FSDP a part of every weight and of no activation.

    Raises:
        HeadEditError: the layers are not in one list, so devices cannot share them.
    """
    base, trained = size(skeleton.base()), 4 * size(skeleton.trained())
    computing = {"saved": step.saved, "working": step.peak - step.saved, "validation": step.validation}
    process = PROCESS[setup.device]
    if setup.devices == 1:
        return (Share(base=base, trained=trained, **computing, process=process),)
    if not skeleton.layers:
        raise HeadEditError(
            f"The layers of {type(skeleton.model).__name__} are not in one list, so devices cannot share them."
        )
    layers = [size([*layer.parameters(), *layer.buffers()]) for layer in skeleton.layers]
    if setup.split == "fsdp":
        outside = base - sum(layers)
        gathered = min(base, -(-base // setup.devices) + outside + _GATHERED * max(layers))
        one = Share(base=gathered, trained=trained, **computing, process=process)
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
