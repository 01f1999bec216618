"""What a gate map says of a head when the pointer is over its cell: its numbers, and the tokens that it changes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy

from headedit.interpret.evidence.tokens import HeadWords
from headedit.interpret.head_map import HeadMap
from headedit.interpret.labels import LABELS, head_name, short, with_error
from headedit.interpret.plots.effects import effect_sizes

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

Place = tuple[str, int, int]
"""(kind of site, layer, head)."""

EVERY_UP_TO = 512
"""Cells of a map of which every head has a text."""

_TOKENS = 5
_NAMES = (("gate_offset", "offset_norm"), ("gate_scale", "scale_rms"))
_MEASURED = ("contribution", "attribution", "integrated", "probe_accuracy")


def hover_texts(
    source: HeadMap, words: Sequence[HeadWords] = (), evidence: "pandas.DataFrame | None" = None
) -> dict[Place, str]:
    """A text of some lines for every edited head; of a large map only for those that change something.

    Args:
        source: the edits.
        words: what ``headedit.tokens`` returned, for the tokens that a head promotes and suppresses.
        evidence: the frame that ``headedit.evidence`` returned, for effects and tokens.
    """
    found = {}
    spoken = {(word.head.kind, word.head.layer, word.head.head): word for word in words}
    rows: dict[Place, Mapping[str, object]] = {}
    if evidence is not None:
        rows = {(row["kind"], int(row["layer"]), int(row["head"])): row for row in evidence.to_dict("records")}
    for kind in source.module.kinds():
        gates = [numpy.asarray(grid) for grid in source.module.gates(kind)]
        sizes = effect_sizes(source, kind)
        large = sizes[0].size > EVERY_UP_TO
        for layer, head in source.has_head(kind).nonzero().tolist():
            if large and not any(size[layer, head] > 0 for size in sizes):
                continue
            place = (kind, layer, head)
            lines = [head_name(layer, head) + ("" if kind == "attention" else f", {kind}")]
            for gate, size, names in zip(gates, sizes, _NAMES, strict=True):
                if not math.isnan(gate[layer, head]):
                    lines.append(
                        f"{short(names[0])} {gate[layer, head]:.3g}, {short(names[1])} {size[layer, head]:.3g}"
                    )
            lines += _evidence_lines(rows.get(place, {}))
            lines += _token_lines(spoken.get(place), rows.get(place, {}))
            found[place] = "\n".join(lines)
    return found


def _evidence_lines(row: Mapping[str, object]) -> list[str]:
    effect, error = row.get("effect"), row.get("effect_error")
    lines = []
    if isinstance(effect, float) and not math.isnan(effect):
        shown = with_error(effect, error) if isinstance(error, float) else f"{effect:.3g}"
        lines.append(f"effect {shown} {LABELS['effect'].unit}")
    for name in _MEASURED:
        value = row.get(name)
        if isinstance(value, float) and not math.isnan(value):
            lines.append(f"{short(name)} {value:.3g}")
    return lines


def _token_lines(word: HeadWords | None, row: Mapping[str, object]) -> list[str]:
    lines = []
    for name in ("promotes", "suppresses"):
        changes = None if word is None else word.measured or word.weights
        if changes is not None:
            tokens = [token for token, _ in getattr(changes, name)]
        else:
            given = row.get(name)
            tokens = list(given) if isinstance(given, list | tuple) else []
        if tokens:
            lines.append(f"{short(name)}: {', '.join(repr(token) for token in tokens[:_TOKENS])}")
    return lines
