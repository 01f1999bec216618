"""The plan of a run: the memory it needs on each device, by purpose."""

from dataclasses import dataclass, replace
from typing import Any

from headedit.edits import EditConfig
from headedit.specs import Spec
from headedit.training.memory_plan.memory import PROCESS
from headedit.training.memory_plan.pattern import edits_of_first, find_pattern, layer_kinds, shortened
from headedit.training.memory_plan.setup import Setup
from headedit.training.memory_plan.shares import Share, shares
from headedit.training.memory_plan.skeleton import Skeleton, size
from headedit.training.memory_plan.step import Step, trace_step

UNCERTAINTY = 0.15
"""How far the memory of a step may be from what is measured, as a share."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory that a run needs, in bytes: of weights all of them, and of passes those of one process.

    Fields:
        setup: how it trains.
        weights: of the base model, scales of quantized ones included.
        dtypes: of ``weights``, by dtype.
        buffers: of the base model, such as the frequencies of position embeddings.
        parameters: how many the edits have.
        edits: their parameters, float32.
        gradients: of the edits.
        optimizer: AdamW's two moments of each parameter of the edits.
        saved: what a forward pass saves for the backward pass.
        working: what a step holds in addition at its peak: logits and their gradient, a layer that is run again, …
        validation: what a pass in validation holds at its peak, in place of ``saved`` and ``working``.
        logits: those that are made at once, a part of ``saved`` or ``working``.
        process: what the process itself takes of a device: the context and libraries.
        shares: what each device holds.
    """

    setup: Setup
    weights: int
    dtypes: dict[str, int]
    buffers: int
    parameters: int
    edits: int
    gradients: int
    optimizer: int
    saved: int
    working: int
    validation: int
    process: int
    shares: tuple[Share, ...]
    logits: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device that needs most."""
        return max(share.total for share in self.shares)

    @property
    def careful(self) -> int:
        """The same if the estimate of a step is too low by ``UNCERTAINTY``."""
        return max(round(share.total + UNCERTAINTY * share.computing) for share in self.shares)

    def verdict(self, memory: int) -> str:
        """``fits``, ``tight`` where the error of the estimate may be larger than what is left, or ``does not fit``."""
        if self.total > memory:
            return "does not fit"
        return "tight" if self.careful > memory else "fits"

    def rows(self) -> list[tuple[str, int]]:
        """Bytes by purpose: weights and edits once, and of passes what one process holds, on all its devices."""
        return [
            *((f"weights, {dtype}", number) for dtype, number in self.dtypes.items()),
            ("buffers", self.buffers),
            ("edits", self.edits),
            ("gradients of the edits", self.gradients),
            ("optimizer (AdamW, float32)", self.optimizer),
            ("saved for the backward pass", self.saved),
            ("working memory of a step, logits and loss included", self.working),
            ("or, in validation, in place of the last two", self.validation),
            ("logits made at once, within these", self.logits),
            *((what, number) for what, number in _of_each_device(self) if number),
        ]


def _of_each_device(plan: Plan) -> list[tuple[str, int]]:
    """What devices that share every weight hold of it: a part that each keeps, and what it gathers."""
    share = plan.shares[0]
    if plan.setup.devices == 1 or plan.setup.split == "device_map":
        return []
    return [
        ("weights that each device keeps", share.base),
        ("weights that it gathers meanwhile", share.gathered),
    ]


class Planner:
    """Plans runs of one model.

    Args:
        config: of a causal LM of transformers; no weights are needed.
        edits: the shape of the edits.
        spec: where the heads are; by default found by the model type.
        whole: run every layer, also where they are alike.
    """

    def __init__(
        self, config: Any, edits: EditConfig | None = None, *, spec: "Spec | str | None" = None, whole: bool = False
    ) -> None:
        self._config, self._spec, self._whole = config, spec, whole
        self._edits = EditConfig() if edits is None else replace(edits, positions="all")  # as much memory as on some
        self._skeletons: dict[tuple[object, ...], Skeleton] = {}
        self._steps: dict[Setup, Step] = {}

    def plan(self, setup: Setup) -> Plan:
        """The plan of a run.

        Raises:
            HeadEditError: the model cannot be built, has no spec, or cannot be run without weights.
        """
        skeleton, own = self._skeleton(replace(setup, devices=1)), self._skeleton(setup)
        alone = setup if own is not skeleton else replace(setup, devices=1)
        step = self._steps[alone] = self._steps.get(alone) or self._step(own, alone)
        dtypes: dict[str, int] = {}
        for tensor in skeleton.weights():
            name = str(tensor.dtype).removeprefix("torch.")
            dtypes[name] = dtypes.get(name, 0) + size([tensor])
        edits = size(skeleton.trained())
        return Plan(
            setup=setup,
            weights=sum(dtypes.values()),
            dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
            buffers=size(skeleton.model.buffers()),
            parameters=sum(p.numel() for p in skeleton.trained()),
            edits=edits,
            gradients=edits,
            optimizer=2 * edits,
            saved=step.saved,
            working=step.peak - step.saved,
            validation=step.validation,
            logits=step.logits,
            process=PROCESS[setup.device],
            shares=shares(skeleton, own, step, setup),
        )

    def _skeleton(self, setup: Setup) -> Skeleton:
        sharing = setup.devices if setup.split == "tensor_parallel" else 1
        key = (setup.dtype, setup.quantization, setup.attention, sharing)
        if key not in self._skeletons:
            self._skeletons[key] = Skeleton(self._config, setup, self._edits, self._spec)
        return self._skeletons[key]

    def _step(self, skeleton: Skeleton, setup: Setup) -> Step:
        pattern = None if self._whole else find_pattern(skeleton, self._config)
        if pattern is None:
            return trace_step(skeleton, setup)
        shorts = [self._first(skeleton, setup, pattern.short + more) for more in (0, pattern.period)]
        if any(short is None for short in shorts):
            return trace_step(skeleton, setup)
        short, longer = (trace_step(s, setup) for s in shorts if s is not None)
        return short.extended(longer, pattern.missing, pattern.representative)

    def _first(self, skeleton: Skeleton, setup: Setup, layers: int) -> Skeleton | None:
        """The model with the first so many layers alone; None where its config cannot give it."""
        config = shortened(self._config, layers, len(skeleton.layers))
        if config is None:
            return None
        short = Skeleton(config, setup, edits_of_first(self._edits, skeleton, layers), self._spec)
        same = layer_kinds(short, config) == layer_kinds(skeleton, self._config)[:layers]
        return short if same else None


def estimate(config: Any, setup: Setup, *, edits: EditConfig | None = None, spec: "Spec | str | None" = None) -> Plan:
    """Estimates the memory of a run before any weight is loaded.

    Weights, edits and optimiser are counted. The memory of a step is found by running it on the meta device, where the
    storage of every tensor is counted while it lives; where layers are alike, in two short models, whose difference
    is the memory of the other layers. As tensors have no values there, experts are assumed to get equal shares of the
    tokens.

    Args:
        config: of a causal LM of transformers.
        setup: how it trains.
        edits: the shape of the edits; by default that of ``attach``.
        spec: where the heads are; by default found by the model type.

    Raises:
        HeadEditError: the model cannot be built, has no spec, or cannot be run without weights.
    """
    return Planner(config, edits, spec=spec).plan(setup)
