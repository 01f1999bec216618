"""Effect sizes: how much the edit of every head changes its output."""

from collections.abc import Iterable
from typing import Any

import numpy
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from headedit.data.encoding import check_iterable, ids_to_last_token
from headedit.edits import HeadEdits
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.hf.tokenizers import as_tokenizer
from headedit.interpret.evidence.heads import check_handle
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.labels import head_name
from headedit.interpret.palette import COLOURS, EDGE, FAINT, SEQUENTIAL
from headedit.interpret.plots.heading import Subtitle
from headedit.interpret.plots.heatmap import Grid, add_bar, draw, finish, frame, mark_groups, mark_layers, mark_missing
from headedit.training.steering.head_outputs import last_outputs

_RANGE = 1000  # of the colours, largest over smallest


def effects(
    edits: Edits,
    *,
    norms: Tensor | None = None,
    kind: str | None = None,
    title: str | None = None,
    subtitle: Subtitle = True,
) -> Figure:
    """Draws heatmaps of the size of every head's offset and scale in eval mode.

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        norms: of the heads' outputs before the edit, [layers, heads], as ``headedit.head_norms`` measures them;
            offsets are then shares of them. The share of a head without an output is above all others.
        kind: the kind of site; by default all that are edited, one row of panels each, or with ``norms`` the first.
        title: by default which kinds are shown.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure with two panels per kind, each layers × heads: ‖g·a‖ of the offset, plain or as a share of the norm of
        the head's output, and the root mean square of g·m over the head's width, which is the relative change that a
        scale makes to a number of the output. The colours are logarithmic, up to the largest and at most three powers
        of ten down, so that one large head does not hide the others; heads of size 0 are pale.

    Raises:
        HeadEditError: ``norms`` are of another shape, the edits have no site of the kind, or the folder holds none.
    """
    source = HeadMap.of(edits)
    kinds = source.shown_kinds(source.module.kinds()[0] if kind is None and norms is not None else kind)
    sizes = {name: effect_sizes(source, name, norms) for name in kinds}
    layers, heads = (max(pair[0].shape[i] for pair in sizes.values()) for i in (0, 1))
    figure, axes = frame(len(kinds), 2, layers, heads)
    handles = []
    measure = r"Offset: norm $\|g_a a\|$" if norms is None else "Offset: share of the norm\nof the head's output"
    labels = (measure, "Scale: root mean square\nof the change $g_m m$")
    for row, (name, pair) in zip(axes, sizes.items(), strict=True):
        for axis, grid, label in zip(row, pair, labels, strict=True):
            _panel(axis, grid, label)
            mark_groups(axis, source.group_size(name), grid.shape[1])
        row[0].set_ylabel("layer" if len(kinds) == 1 else f"{name} heads\nlayer")
        handles = mark_layers(row[0], source.layer_kinds)
    handles += mark_missing([grid for pair in sizes.values() for grid in pair])
    if any((grid == 0).any() for pair in sizes.values() for grid in pair):
        handles.insert(0, Patch(facecolor=COLOURS["none"], edgecolor=EDGE, label="0: not changed"))
    name = f"Effect sizes of {' and '.join(kinds)} heads"
    finish(figure, handles, name if title is None else title, subtitle, [edits])
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
        tokenizer: the model's tokenizer, its name or its folder; None is enough where all examples hold ``input_ids``.
        batch_size: examples per batch.
        kind: the kind of site; by default attention, or else the first.
        progress: show a bar.

    Returns:
        [layers, heads], rows and columns as in ``HeadEdits.gates``, NaN where there is no edited head.

    Raises:
        HeadEditError: there are no examples, one is of another form, empty or too long, the edits have no such kind,
            or a head's output is not finite.
    """
    check_handle(edits)
    check_iterable(examples, "The set of examples")
    result = torch.full_like(edits.gates(kind).offset, torch.nan)
    reader = as_tokenizer(tokenizer)
    rows = [ids_to_last_token(example, reader, f"Example {i + 1}") for i, example in enumerate(examples)]
    if not rows:
        raise HeadEditError("There is nothing to measure with: the set of examples is empty.")
    places = list(edits.module.columns(edits.module.kinds()[0] if kind is None else kind))
    outputs = last_outputs(edits, [site for site, _, _ in places], rows, batch_size=batch_size, progress=progress)
    for (site, _, first), output in zip(places, outputs, strict=True):
        result[site.layer, first : first + site.heads] = output.norm(dim=-1).mean(0)
    return result


def _panel(axis: Axes, grid: Grid, label: str) -> None:
    there, beyond = ~numpy.isnan(grid), numpy.isinf(grid)  # a share of the output of a head that has none
    sizes = grid[there & (grid > 0) & ~beyond]
    largest = float(sizes.max()) if len(sizes) else 1.0
    smallest = max(float(sizes.min()) if len(sizes) else 0.0, largest / _RANGE)
    smallest = smallest if smallest < largest else largest / 10
    colours = colormaps[SEQUENTIAL].with_extremes(bad=COLOURS["none"])
    image = draw(axis, numpy.where(beyond, 2 * largest, grid), colours=colours, norm=LogNorm(smallest, largest))
    if len(axis.get_xticks(minor=True)):
        axis.grid(which="minor", color=FAINT, linewidth=0.6)  # white would not show on heads of size 0
    if len(sizes):
        layer, head = numpy.unravel_index(numpy.nanargmax(numpy.where(beyond, numpy.nan, grid)), grid.shape)
        label += f"\nlargest {head_name(int(layer), int(head))}"
    elif not beyond.any():
        label += "\nall 0" if there.any() else "\nnone"
    if beyond.any():
        label += f"\n{int(beyond.sum())} above all: no output without the edit"
    axis.set_title(label, fontsize=10)
    below = bool(len(sizes)) and float(sizes.min()) < smallest
    extend = ("both" if below else "max") if beyond.any() else "min" if below else "neither"
    bar = add_bar(image, [axis], "", extend=extend)
    ticks = numpy.geomspace(smallest, largest, 4) if len(sizes) else numpy.empty(0)
    bar.set_ticks(ticks.tolist(), labels=[f"{float(f'{tick:.2g}'):g}" for tick in ticks])
    bar.ax.minorticks_off()
