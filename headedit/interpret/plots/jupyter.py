"""The summary of a handle in a notebook: self-contained HTML, without scripts or style sheets."""

import math
from pathlib import Path
from typing import Any

import numpy

from headedit.edits import HeadEdits
from headedit.interpret.head_map import HeadMap
from headedit.interpret.labels import axis_label, short
from headedit.interpret.plots.effects import effect_sizes
from headedit.interpret.plots.heatmap import Grid
from headedit.interpret.plots.hover import hover_texts
from headedit.interpret.plots.svg import gate_maps
from headedit.io.html import html_block, html_note, html_table

_MOST_HEADS = 8
_COLUMNS = ("layer", "head", "gate_offset", "offset_norm", "gate_scale", "scale_rms")
_COUNTED = ("any", "offset", "scale")


def html(edits: HeadEdits) -> str:
    """Model, spec, counts of open gates, the gates as a picture, and the heads with the largest edits.

    The colours of text and lines are those of the page, so that it reads in a light and in a dark notebook alike. Over
    a cell of the picture, the browser shows the numbers of its head. Where a viewer drops the picture, an SVG, the
    tables remain.

    Args:
        edits: the handle, attached or detached.
    """
    source = HeadMap.of(edits)
    parts = [html_table([], _facts(edits)), gate_maps(source, hover=hover_texts(source))]
    kinds = source.module.kinds()
    top = {kind: rows for kind in kinds if (rows := _top_heads(source, kind))}
    for kind, rows in top.items():
        heads = "Heads" if len(kinds) == 1 else f"{kind} heads"
        parts += [html_note(f"{heads} with the largest edits"), html_table([short(name) for name in _COLUMNS], rows)]
    if not top:
        parts.append(html_note("No head is changed: all effective vectors are 0."))
    return html_block(_title(edits), *parts)


def _title(edits: HeadEdits) -> str:
    name = str(getattr(edits.model.config, "_name_or_path", "") or "")
    name = Path(name).name if Path(name).is_absolute() else name
    state = "" if edits.attached else ", detached"
    return f"HeadEdits on {type(edits.model).__name__}{f' ({name})' if name else ''}{state}"


def _facts(edits: HeadEdits) -> list[tuple[str, ...]]:
    counts = edits.count_open()
    sites = edits.sites
    shapes = sorted({(site.kind, site.heads, site.head_dim) for site in sites})
    heads = "; ".join(f"{count} {kind} heads of width {width}" for kind, count, width in shapes[:4])
    edited = len({site.layer for site in sites})
    adapter = f"{edits.active_adapter}, active of {', '.join(edits.adapters)}"
    return [
        ("spec", Path(edits.spec.source).name),
        *([("adapter", adapter)] if len(edits.adapters) > 1 else []),
        *([("strength", f"{edits.strength:g}")] if edits.strength != 1 else []),
        ("layers", f"{edited} of {max(site.layers for site in sites)}, {heads}{'; …' if len(shapes) > 4 else ''}"),
        *((short(key), f"{counts[key][0]:,} of {counts[key][1]:,}") for key in _COUNTED if counts[key][1]),
        (axis_label("parameters"), f"{edits.count_effective_parameters():,}"),
    ]


def _top_heads(source: HeadMap, kind: str) -> list[tuple[str, ...]]:
    """Rows of the table: the heads whose offset or scale is the largest, as a share of the largest there is."""
    sizes = effect_sizes(source, kind)
    gates = [numpy.asarray(grid) for grid in source.module.gates(kind)]
    shares = numpy.stack([_share(grid) for grid in sizes]).max(0)
    order = numpy.argsort(-shares, axis=None, kind="stable")[:_MOST_HEADS]
    places = [divmod(int(i), shares.shape[1]) for i in order if shares.flat[i] > 0]
    columns = (gates[0], sizes[0], gates[1], sizes[1])
    return [(str(layer), str(head), *(_number(grid[layer, head]) for grid in columns)) for layer, head in places]


def _share(grid: Grid) -> Any:
    sizes = numpy.nan_to_num(grid)
    return sizes / (sizes.max() or 1.0)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"
