"""``Steering``: directions of all heads, how well each tells two sets apart, and the edit that they make."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from headedit.data.reading import Tokens
from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, freeze_gates, take_out
from headedit.edits.values import real_number, whole_number
from headedit.errors import HeadEditError
from headedit.hf.sharding import is_sharded
from headedit.io.tables import format_cell, markdown_table
from headedit.training.steering.directions import Method

RankBy = Literal["accuracy", "effect"]

_HEADER = ("layer", "head", "accuracy", "effect size", "σ", "length of the offset")
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """Directions from negative to positive examples; rows and columns as in ``HeadEdits.gates``, NaN where no head is.

    Fields:
        kind: the kind of site.
        method: ``mean_difference`` or ``probe``.
        tokens: at which tokens the heads were read.
        rank_by: ``accuracy`` or ``effect``.
        paired: whether the i-th positive and negative example belong together.
        strength: length of the offsets that were written, in σ of each head.
        chosen: (layer, head) of the heads that were written, best first.
        accuracy: of each head's probe on held-out examples, [layers, heads]; NaN where a set has fewer than 4 examples.
        effect: difference of the sets' means along the direction, in standard deviations within a set, on held-out
            examples (Cohen's d), [layers, heads].
        direction: unit vector towards the positive examples (0 where the sets do not differ), [layers, heads,
            head_dim]; NaN beyond the width of a narrower head.
        sigma: standard deviation over all examples of the head's output along the direction, [layers, heads].
        baseline: accuracy of always naming the larger set.
        positive, negative: numbers of examples.
    """

    kind: str
    method: Method
    tokens: Tokens
    rank_by: RankBy
    paired: bool
    strength: float
    chosen: list[tuple[int, int]]
    accuracy: Tensor = field(repr=False)
    effect: Tensor = field(repr=False)
    direction: Tensor = field(repr=False)
    sigma: Tensor = field(repr=False)
    baseline: float
    positive: int
    negative: int

    def top(self, k: int) -> list[tuple[int, int]]:
        """(layer, head) of the k best heads, best first; equally accurate ones by effect, then by layer and head.

        Raises:
            HeadEditError: ``k`` is below 1 or above the number of heads at which the sets differ.
        """
        k = whole_number(k, "heads", "how many heads to steer")
        differ = self.direction.nan_to_num().ne(0).any(-1)
        count, total = int(differ.sum()), int((~self.sigma.isnan()).sum())
        if not count:
            raise HeadEditError(
                "positive and negative: every head has the same output for both, so there is no direction between them."
            )
        if not 1 <= k <= count:
            which = "heads that were read" if count == total else f"of {total} heads at which the sets differ"
            raise HeadEditError(f"heads: found {k}, expected 1 to {count}, the number of {which}.")
        keys = [self.effect, self.accuracy] if self.rank_by == "accuracy" else [self.effect]
        order = torch.arange(differ.numel())
        for key in keys:  # the last one counts most, as the order of equals is kept
            values = torch.where(differ, key, -torch.inf).flatten()
            order = order[torch.sort(values[order], descending=True, stable=True).indices]
        return [divmod(int(i), differ.shape[1]) for i in order[:k]]

    def apply(self, edits: HeadEdits, *, heads: int | None = None, strength: float | None = None) -> None:
        """Makes the active edit of a handle this one: z' = z + strength · σ · direction on the best heads.

        All other vectors of the edit are set to 0, its gates are closed, and its ``strength`` is 1.

        Args:
            edits: the handle that was read, or one with the same heads.
            heads: how many of the best heads; None for those in ``chosen``.
            strength: in σ of each head; negative values steer the other way. None for the field's.

        Raises:
            HeadEditError: the edits have no offsets, lack these heads, are merged, or have no values here; an argument
                is out of its range, or an offset is too large for the dtype. Nothing is changed then.
        """
        chosen = self.chosen if heads is None else self.top(heads)
        factor = self.strength if strength is None else check_steering_strength(strength)
        check_writable(edits)
        adapter = edits.module
        missing = set(chosen)
        offsets: list[tuple[GateIndex, Tensor]] = []
        site_edits = {id(edit): i for i, edit in enumerate(adapter)}
        for site, edit, first in adapter.columns(self.kind) if self.kind in adapter.kinds() else ():
            for layer, head in chosen:
                if layer != site.layer or not first <= head < first + site.heads:
                    continue
                vector = self.direction[layer, head]
                vector = vector[~vector.isnan()]
                offset = (factor * self.sigma[layer, head] * vector).to(edit.vectors["offset"])
                if len(vector) == site.head_dim:
                    missing.discard((layer, head))
                if not offset.isfinite().all():
                    raise HeadEditError(
                        f"strength: found {factor:g}, with which the offset of head {head} in layer {layer} is too "
                        f"large for {str(offset.dtype).removeprefix('torch.')}."
                    )
                offsets.append((GateIndex(site_edits[id(edit)], "offset", head - first), offset))
        if missing:
            layer, head = min(missing)
            raise HeadEditError(
                f"These edits have no {self.kind} head {head} of the same width in layer {layer}, which was read; give "
                "the edits that were read."
            )
        with edits.writing("they cannot be steered"), torch.no_grad():
            take_out(adapter)
            listed = list(adapter)
            freeze_gates(adapter, [gate for gate, _ in offsets] if any(len(edit.gates) for edit in listed) else [])
            for gate, offset in offsets:
                listed[gate.site].vectors["offset"][gate.head] = offset
            adapter.strength = 1.0

    def rows(self) -> list[tuple[Any, ...]]:
        """The chosen heads as rows of a table, best first; see ``header``."""
        return [
            (
                *place,
                self.accuracy[place].item(),
                round(self.effect[place].item(), 2),
                self.sigma[place].item(),
                abs(self.strength) * self.sigma[place].item(),
            )
            for place in self.chosen
        ]

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the columns of ``rows``."""
        return _HEADER

    def summary(self) -> str:
        """What was written and what it was found from, in a line."""
        total = int((~self.sigma.isnan()).sum())
        where = {"last": "the last token", "response": "the tokens of the response", "all": "all tokens"}[self.tokens]
        return (
            f"{self.method} on {len(self.chosen)} of {total} {self.kind} heads, {self.strength:g} σ long, read at "
            f"{where} of {self.positive} positive and {self.negative} negative examples"
            f"{' in pairs' if self.paired else ''}; accuracy of the larger set {self.baseline:.2f}"
        )

    def __repr__(self) -> str:
        cells = [_HEADER, *([format_cell(cell) for cell in row] for row in self.rows()[:_SHOWN])]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([f"Steering({self.summary()})", *lines, *self._more()])

    def _repr_markdown_(self) -> str:
        """The same as a table for notebooks."""
        return "\n\n".join([self.summary(), markdown_table(_HEADER, self.rows()[:_SHOWN], left=0), *self._more()])

    def _more(self) -> list[str]:
        rest = len(self.chosen) - _SHOWN
        return [f"and {rest} more"] if rest > 0 else []


def check_steering_strength(given: Any) -> float:
    """The strength as a number.

    Raises:
        HeadEditError: it is not a finite number, or is 0.
    """
    expected = "a number such as 4, in standard deviations of the head's output"
    number = real_number(given, "strength", expected)
    if number == 0:
        raise HeadEditError(f"strength: found 0, which changes nothing; expected {expected}.")
    return number


def check_writable(edits: HeadEdits) -> None:
    """Raises a HeadEditError where offsets cannot be written into the active edit, or would not act."""
    edits.check_acting("steered", "steered")
    for site, edit in edits.module.pairs():
        if "offset" not in edit.vectors:
            raise HeadEditError(
                "These edits have no offset, which steering writes: they were made with vectors='scale'. Attach them "
                "with EditConfig(vectors='offset') or 'both'."
            )
        for name, value in (*edit.vectors.items(), *edit.gates.items()):
            where = f"{site.name}.{name}"
            if value.is_meta:
                raise HeadEditError(
                    f"{where} is on the meta device and has no values to write. Attach the edits after the model is "
                    "offloaded, or move it off the meta device."
                )
            if is_sharded(value) or value.shape[0] != edit.heads:
                raise HeadEditError(
                    f"{where} is sharded over processes. Steer the whole model in one process, save the edits, and "
                    "load them before the model is sharded."
                )
