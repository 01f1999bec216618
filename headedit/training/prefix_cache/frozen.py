"""``FrozenPrefix``: passes of a model that begin at the first edited layer, once an example has been seen."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headedit.edits import HeadEdits
from headedit.training.prefix_cache.checks import check_arguments, check_prefix, unchanged_random
from headedit.training.prefix_cache.layers import LowerLayers
from headedit.training.prefix_cache.store import HiddenStates, rows_of, same_for_all


class FrozenPrefix:
    """A context in which the layers below the first edited one run once for each example.

    They are frozen and nothing edits them, so what they give for an example is the same in every epoch. The first pass
    that an example comes in computes it, for the example alone and without padding; that and every later pass then
    begin at the first edited layer. A pass that is not a batch of examples padded on the right runs as ever.

    At a batch of one, losses and gradients are those of the plain pass to the bit. In larger batches they differ by the
    rounding with which a batched product differs from a single one. Before it is first used this is tried on an
    example; where it is not so to the bit, it is refused.

    Args:
        edits: the handle.
        arguments: fields of ``TrainingArguments`` that the run has.

    Raises:
        HeadEditError: the first layer is edited, the edited layers are in several stacks, or the run is sharded or
            compiled; and in the first pass, what ``check_prefix`` raises.
    """

    def __init__(self, edits: HeadEdits, arguments: Mapping[str, Any]) -> None:
        check_arguments(edits.model, arguments)
        self._model = edits.model
        self._lower = LowerLayers(edits)
        self._states = HiddenStates()
        self._width = same_for_all(edits.model)
        self._hooks: list[RemovableHandle] = []
        self._checked = self._resting = False

    def __enter__(self) -> "FrozenPrefix":
        """Begins; what was computed in an earlier context is still there."""
        self._hooks = [  # the first hook of all: what others begin in front of a pass is not begun twice
            self._model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True),
            self._model.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the model as it was."""
        for hook in self._hooks:
            hook.remove()
        self._lower.step_aside()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which every pass runs all layers."""
        before, self._resting = self._resting, True
        try:
            yield
        finally:
            self._resting = before

    @property
    def record(self) -> dict[str, int]:
        """Layers that are not run again, examples whose hidden state this process has, and its bytes."""
        return {"layers": self._lower.count, "examples": len(self._states), "bytes": self._states.bytes}

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._resting or args or module is not self._model:
            return
        rows = rows_of(kwargs)
        if rows is None:
            return
        ids: Tensor = kwargs["input_ids"]
        if ids.shape[1] >= self._width:
            return
        missing = self._states.missing(rows)
        if missing:
            self._fill(missing, ids.device)
        self._lower.stand_in(self._states.batch(rows, ids.shape[1]))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._resting:
            self._lower.step_aside()

    def _fill(self, rows: list[Tensor], device: torch.device) -> None:
        with self.paused(), torch.inference_mode(False), torch.no_grad(), unchanged_random(self._model):
            if not self._checked:
                check_prefix(self._lower, max(rows, key=len).to(device))
                self._checked = True
            for row in rows:
                self._states.put(row, self._lower.run(row.to(device)))
