"""The map of heads on a page: the colour class of every cell for every measure, and the legends of the measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from headedit.interpret.head_map import HeadMap
from headedit.interpret.palette import COLOURS, DARK, SEQUENTIAL
from headedit.interpret.plots.types import TYPES
from headedit.interpret.report.columns import Column, Key, is_missing
from headedit.interpret.report.drawing import lifted_colours
from headedit.interpret.report.folder import two_digits

LEVELS = 10
_SIDE = LEVELS // 2
_GATES = ("gate_offset", "gate_scale")


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """A colour in a legend: the class that has it, and the text next to it."""

    style: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A quantity that a map can show.

    Fields:
        label: its name.
        meaning: a sentence on it.
        legend: the colours.
        styles: the class of every head.
    """

    label: str
    meaning: str
    legend: Sequence[Swatch]
    styles: Mapping[Key, str]


@dataclass(frozen=True, kw_only=True)
class Map:
    """The heads of a kind.

    Fields:
        kind: of their sites.
        layers: a name for each layer, and its heads; None where there is no such head, or it is not edited.
        group: number of neighbouring heads that share a key-value head; None where it is not known.
    """

    kind: str
    layers: Sequence[tuple[str, Sequence[Key | None]]]
    group: int | None


def maps(source: HeadMap) -> list[Map]:
    """A map of each kind of site."""
    found = []
    names = source.layer_kinds
    several = len(set(names)) > 1
    for kind in source.module.kinds():
        rows = [
            (
                f"{layer} {names[layer]}" if several else str(layer),
                [(kind, layer, head) if there else None for head, there in enumerate(row)],
            )
            for layer, row in enumerate(source.has_head(kind).tolist())
        ]
        found.append(Map(kind=kind, layers=rows, group=source.group_size(kind)))
    return found


def measures(rows: Mapping[Key, Mapping[str, Any]], columns: Sequence[Column]) -> list[Measure]:
    """The measures that the maps can show of these rows, the type of edit first."""
    return [
        _measure(column, {key: row.get(column.key) for key, row in rows.items()}) for column in columns if column.drawn
    ]


def colour_rules() -> str:
    """Style rules: the palette's colours as variables, on a light and on a dark page, and a class for every level."""
    lifted = {f"lifted-{colour[1:]}": (colour, dark) for colour, dark in lifted_colours().items()}
    light = {name: COLOURS[name] for name in (*TYPES, "rise", "fall")}
    light |= {name: colour for name, (colour, _) in lifted.items()}
    dark = {name: colour for name, (_, colour) in lifted.items()} | DARK
    levels = {f"s{level}": to_hex(colormaps[SEQUENTIAL](level / LEVELS)) for level in range(LEVELS + 1)}
    rules = [
        _root(light),
        f"@media (prefers-color-scheme: dark){{{_root(dark)}}}",
        *(f".{name}{{background:{colour}}}" for name, colour in levels.items()),
    ]
    return "\n".join(rules)


def _root(variables: Mapping[str, str]) -> str:
    return f":root{{{''.join(f'--{name}:{colour};' for name, colour in variables.items())}}}"


def _measure(column: Column, values: Mapping[Key, Any]) -> Measure:
    if column.form == "text":
        kinds = dict(zip(("none", "offset", "scale", "offset and scale"), TYPES, strict=True))
        counts = {name: sum(value == name for value in values.values()) for name in kinds}
        legend = [Swatch(style=f"t-{style}", text=f"{name}: {counts[name]:,}") for name, style in kinds.items()]
        styles = {key: f"t-{kinds[value]}" for key, value in values.items()}
        return Measure(label=column.label, meaning=column.meaning, legend=legend, styles=styles)
    numbers = [value for value in values.values() if not is_missing(value) and math.isfinite(value)]
    signed = column.form == "signed"
    low = min(numbers) if column.key == "probe_accuracy" else 0.0
    high = 1.0 if column.key in _GATES else max(map(abs, numbers), default=0.0)
    levels = range(-_SIDE, _SIDE + 1) if signed else range(LEVELS + 1)
    names = [_style(level, signed) for level in levels]
    ends = (two_digits(-high if signed else low), two_digits(high))
    texts = [ends[0], *[""] * (len(names) - 2), ends[1]]
    legend = [Swatch(style=name, text=text) for name, text in zip(names, texts, strict=True)]
    styles = {
        key: "missing" if is_missing(value) else _style(_level(value, low, high, signed), signed)
        for key, value in values.items()
    }
    return Measure(label=column.label, meaning=column.meaning, legend=legend, styles=styles)


def _level(value: float, low: float, high: float, signed: bool) -> int:
    """The level of a value, rounded away from 0, so that only 0 is drawn as 0."""
    if math.isinf(value):
        return (_SIDE if value > 0 else -_SIDE) if signed else LEVELS
    if high <= low:
        return 0
    share = (abs(value) - low) / (high - low)
    level = math.ceil(share * (_SIDE if signed else LEVELS) - 1e-9)
    return -level if value < 0 else level


def _style(level: int, signed: bool) -> str:
    return f"d{level}" if signed else f"s{level}"
