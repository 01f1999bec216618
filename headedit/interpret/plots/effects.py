"""Effect sizes: how much the edit of every head changes its output."""

from collections.abc import Iterable
from typing import Any

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from headedit.data.encoding import ids_to_last_token
from headedit.edits import HeadEdits
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.plots.heatmap import Grid, add_bar, draw, finish, frame, mark_groups, mark_layers, mark_missing
from headedit.training.steering.head_outputs import last_outputs


def effects(edits: Edits, *, norms: Tensor | None = None, kind: str | None = None, title: str | None = None) -> Figure:
    """Draws heatmaps of the size of every head's offset and scale in eval mode.

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        norms: of the heads' outputs before the edit, [layers, heads], as ``headedit.head_norms`` measures them;
            offsets are then shares of them.
        kind: the kind of site; by default all that are edited, one row of panels each, or with ``norms`` the first.
        title: by default which kinds are shown.

    Returns:
        A figure with two panels per kind, each layers × heads, with a colour bar of its own from 0 to the largest:
        ‖g·a‖ of the offset, plain or as a share of the norm of the head's output, and the root mean square of g·m
        over the head's width, which is the relative change that a scale makes to a number of the output.

    Raises:
        HeadEditError: ``norms`` are of another shape, the edits have no site of the kind, or the folder holds none.
    """
    source = HeadMap.of(edits)
    kinds = source.shown_kinds(source.module.kinds()[0] if kind is None and norms is not None else kind)
    sizes = {name: effect_sizes(source, name, norms) for name in kinds}
    layers, heads = (max(pair[0].shape[i] for pair in sizes.values()) for i in (0, 1))
    figure, axes = frame(len(kinds), 2, layers, heads)
    handles = []
    unit = "norm" if norms is None else "share of the head's output"
    for row, (name, pair) in zip(axes, sizes.items(), strict=True):
        panels = ((r"Offset  $\|g_a a\|$", unit), (r"Scale  rms($g_m m$)", "root mean square"))
        for axis, grid, (label, measure) in zip(row, pair, panels, strict=True):
            _panel(axis, grid, label, measure)
            mark_groups(axis, source.group_size(name), grid.shape[1])
        row[0].set_ylabel("layer" if len(kinds) == 1 else f"{name} heads\nlayer")
        handles = mark_layers(row[0], source.layer_kinds)
    handles += mark_missing([grid for pair in sizes.values() for grid in pair])
    finish(figure, handles, f"Effect sizes of {' and '.join(kinds)} heads" if title is None else title)
    return figure


def effect_sizes(source: HeadMap, kind: str, norms: Tensor | None = None) -> tuple[Grid, Grid]:
    """Sizes of the effective vectors: ‖g·a‖ and the root mean square of g·m, [layers, heads], NaN where there is none.

    Args:
        source: the edits.
        kind: the kind of site.
        norms: divide the offsets' norms by these, [layers, heads].

    Raises:
        HeadEditError: ``norms`` are of another shape.
    """

    def norm(vector: str) -> Any:
        def of(edit: SiteEdit) -> Tensor | None:
            acting = edit.effective().get(vector)
            return None if acting is None else acting.float().norm(dim=-1)

        return of

    widths = source.grid(kind, lambda edit: torch.full((edit.heads,), float(edit.head_dim)))
    offset, scale = source.grid(kind, norm("offset")), source.grid(kind, norm("scale")) / widths.sqrt()
    if norms is not None:
        if norms.shape != offset.shape:
            raise HeadEditError(
                f"norms: found shape {tuple(norms.shape)}, expected {tuple(offset.shape)}, layers by {kind} heads; "
                "measure them with headedit.head_norms on the same model."
            )
        offset = torch.where(offset == 0, offset, offset / norms.float())
    return offset.numpy(), scale.numpy()


def head_norms(
    edits: HeadEdits,
    examples: Iterable[Any],
    *,
    tokenizer: Any = None,
    batch_size: int = 16,
    kind: str | None = None,
    progress: bool = True,
) -> Tensor:
    """Measures the mean norm of every head's output at the last token of examples, in the base model, in eval mode.

    Args:
        edits: the handle, which says which heads there are; switched off during the call.
        examples: as for ``headedit.iti``.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        batch_size: examples per batch.
        kind: the kind of site; by default attention, or else the first.
        progress: show a bar.

    Returns:
        [layers, heads], rows and columns as in ``HeadEdits.gates``, NaN where there is no edited head.

    Raises:
        HeadEditError: there are no examples, one is of another form, empty or too long, the edits have no such kind,
            or a head's output is not finite.
    """
    result = torch.full_like(edits.gates(kind).offset, torch.nan)
    rows = [ids_to_last_token(example, tokenizer, f"Example {i + 1}") for i, example in enumerate(examples)]
    if not rows:
        raise HeadEditError("There is nothing to measure with: the set of examples is empty.")
    places = list(edits.module.columns(edits.module.kinds()[0] if kind is None else kind))
    outputs = last_outputs(edits, [site for site, _, _ in places], rows, batch_size=batch_size, progress=progress)
    for (site, _, first), output in zip(places, outputs, strict=True):
        result[site.layer, first : first + site.heads] = output.norm(dim=-1).mean(0)
    return result


def _panel(axis: Axes, grid: Grid, label: str, measure: str) -> None:
    there = ~numpy.isnan(grid)
    largest = float(grid[there].max()) if there.any() else 0.0
    image = draw(axis, grid, norm=Normalize(0, largest or 1.0))
    if largest:
        layer, head = numpy.unravel_index(numpy.nanargmax(grid), grid.shape)
        label += f":  largest at layer {layer}, head {head}"
    elif there.any():
        label += ":  all 0"
    else:
        label += ":  none"
    axis.set_title(label, fontsize=10)
    add_bar(image, [axis], measure)
