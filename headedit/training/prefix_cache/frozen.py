"""``FrozenPrefix``: a context in which forward passes start at the first edited layer, once an example was seen."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits import HeadEdits
from headedit.training.prefix_cache.checks import check_arguments, check_prefix, preserved_rng
from headedit.training.prefix_cache.layers import LowerLayers
from headedit.training.prefix_cache.store import HiddenStates, position_limit, unpadded_rows


class FrozenPrefix:
    """A context in which the layers below the first edited one run once for each example.

    These layers are frozen and not edited, so their output for an example is the same in every epoch. The first pass
    with an example computes that output, for the example alone and without padding; this pass and all later ones then
    start at the first edited layer. A pass that is not a batch of examples padded on the right runs all layers.

    With batches of one example, losses and gradients equal those of the full pass bit for bit. In larger batches they
    differ by the rounding in which a batched product differs from a single one. Before its first use the cache is
    tested on one example; if the results are not equal bit for bit, it is refused.

    Args:
        edits: the handle.
        arguments: the run's fields of ``TrainingArguments``.

    Raises:
        HeadEditError: the first layer is edited, the edited layers are in several stacks, or the run is sharded or
            compiled; and in the first pass, everything that ``check_prefix`` raises.
    """

    def __init__(self, edits: HeadEdits, arguments: Mapping[str, Any]) -> None:
        check_arguments(edits.model, arguments)
        self._model = edits.model
        self._lower = LowerLayers(edits)
        self._states = HiddenStates()
        self._position_limit = position_limit(edits.model)
        self._cleanup = ExitStack()
        self._checked = self._paused = False

    def __enter__(self) -> "FrozenPrefix":
        """Starts using the cache; what an earlier context computed is still in it."""
        # The first of all hooks, so that filling the cache does not run other hooks' beginning of a pass twice.
        before = self._model.register_forward_pre_hook(self._start_pass, with_kwargs=True, prepend=True)
        after = self._model.register_forward_hook(self._end_pass, always_call=True)
        self._cleanup.callback(self._lower.restore)
        self._cleanup.callback(after.remove)
        self._cleanup.callback(before.remove)
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the hooks, and restores the layers' own forward passes."""
        self._cleanup.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which every pass runs all layers."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @property
    def figures(self) -> dict[str, int]:
        """Number of cached layers, number of examples in this process's cache, and its size in bytes."""
        return {"layers": self._lower.count, "examples": len(self._states), "bytes": self._states.bytes}

    def _start_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._paused or args or module is not self._model:
            return
        rows = unpadded_rows(kwargs)
        if rows is None:
            return
        ids: Tensor = kwargs["input_ids"]
        if ids.shape[1] >= self._position_limit:
            return
        missing = self._states.missing(rows)
        if missing:
            self._fill(missing, ids.device)
        self._lower.replay(self._states.batch(rows, ids.shape[1]))

    def _end_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._paused:
            self._lower.restore()

    def _fill(self, rows: list[Tensor], device: torch.device) -> None:
        with self.paused(), torch.inference_mode(False), torch.no_grad(), preserved_rng(self._model):
            if not self._checked:
                check_prefix(self._lower, max(rows, key=len).to(device))
                self._checked = True
            for row in rows:
                self._states.put(row, self._lower.run(row.to(device)))
