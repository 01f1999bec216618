"""The models and batches that are measured on a GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from headedit.bench.cost import SHAPES, Shape
from headedit.bench.cost.shapes import build, check_names

DRY_RUN = Shape(layers=2, hidden=64, heads=4, kv_heads=2, vocab=1000)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, and the batches it is measured with.

    Fields:
        name: of the shape.
        shape: the model, on its device.
        batches: sequences and tokens: several sequences, and one long one.
        prompt: tokens of the prompt that decoding continues.
        decoding: sequences in decoding: one, and many.
        rounds: timed rounds of a workload, by name.
    """

    name: str
    shape: Shape
    batches: tuple[tuple[int, int], tuple[int, int]]
    prompt: int
    decoding: tuple[int, int]
    rounds: dict[str, int]

    def with_batch(self, batch: int, tokens: int) -> Shape:
        """The shape with a batch."""
        return replace(self.shape, batch=batch, tokens=tokens)


NAMES = ("1B", "8B", "tiny")
"""Sizes by name; ``tiny`` is for trying the command out."""

_ROUNDS = {
    "1B": {"step": 30, "forward": 30, "prefill": 20, "decode": 8, "attach": 10},
    "8B": {"step": 20, "forward": 20, "prefill": 8, "decode": 6, "attach": 10},
    "tiny": {"step": 2, "forward": 2, "prefill": 2, "decode": 2, "attach": 2},
}


def sizes_of(names: Sequence[str], device: str) -> list[Size]:
    """Sizes by their names, in bfloat16.

    Raises:
        HeadEditError: a name is not known.
    """
    check_names(names, NAMES, "--shapes")
    return [_tiny(device) if name == "tiny" else _full(name, device) for name in names]


def _full(name: str, device: str) -> Size:
    shape = replace(SHAPES[name], dtype="bfloat16", device=device, tokens=4096)
    batches = ((4, 512), (1, 4096))
    return Size(name=name, shape=shape, batches=batches, prompt=512, decoding=(1, 32), rounds=_ROUNDS[name])


def _tiny(device: str) -> Size:
    shape = replace(DRY_RUN, dtype="bfloat16", device=device, tokens=64)
    batches = ((4, 8), (1, 32))
    return Size(name="tiny", shape=shape, batches=batches, prompt=8, decoding=(1, 4), rounds=_ROUNDS["tiny"])


def builder() -> Callable[[Size], nn.Module]:
    """A function that builds the model of a size where it is asked for first, and returns the same one again."""
    models: dict[str, nn.Module] = {}

    def model_of(size: Size) -> nn.Module:
        if size.name not in models:
            models[size.name] = build(size.shape)
        return models[size.name]

    return model_of
