"""The map of key-value heads: how many of the query heads that share one are edited."""

import numpy
import torch
from einops import rearrange
from matplotlib.figure import Figure

from headedit.edits.adapter import Adapter
from headedit.errors import HeadEditError
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.plots.heading import Subtitle
from headedit.interpret.plots.heatmap import Grid, add_bar, draw, finish, frame, mark_layers, mark_missing, size_of

_ROOM = 0.15  # inches that a cell needs for its number


def groups(
    edits: Edits, *, key_value_heads: int | None = None, title: str | None = None, subtitle: Subtitle = True
) -> Figure:
    """Draws a map of the groups of attention heads that share a key-value head.

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        key_value_heads: their number per layer; by default that of the model's config, where it has one, and otherwise
            one for every head.
        title: by default how many groups have an edited head, or that no heads share one.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure with one panel, layers × key-value heads. Colour is the share of the group's heads with an open gate,
        and the number in a cell, where there is room, is their count. Grey hatched cells: no such group, or a layer
        without edited attention heads.

    Raises:
        HeadEditError: the number is not known, as of parameters without their model, or does not divide the heads,
            there are no attention heads, or the folder holds no edits.
    """
    source = HeadMap.of(edits)
    source.shown_kinds("attention")
    counts, sizes = _count(source, key_value_heads, config_is_known=not isinstance(edits, Adapter))
    figure, axes = frame(1, 1, *counts.shape)
    axis = axes[0, 0]
    image = draw(axis, counts / sizes)
    width, height = size_of(axis)
    if min(width / counts.shape[1], height / counts.shape[0]) >= _ROOM:
        for layer, group in numpy.argwhere(~numpy.isnan(counts)):
            share = counts[layer, group] / sizes[layer, group]
            colour = "black" if share > 0.6 else "white"
            axis.text(group, layer, f"{counts[layer, group]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    each = sorted({int(size) for size in sizes[~numpy.isnan(sizes)]})
    shared = f"shared by {' or '.join(map(str, each))} heads" if each != [1] else "one for each head"
    axis.set_xlabel(f"key-value head  ({shared})")
    axis.set_ylabel("layer")
    add_bar(image, [axis], "share of the group's heads\nthat have an open gate")
    counted = f"{int((counts > 0).sum())} of {int((~numpy.isnan(counts)).sum())}"
    found = f"{counted} key-value heads have an edited head"
    if each == [1]:
        found = f"No heads share a key-value head: {counted} are edited"
    handles = mark_layers(axis, source.layer_kinds) + mark_missing([counts])
    finish(figure, handles, found if title is None else title, subtitle, [edits])
    return figure


def _count(source: HeadMap, key_value_heads: int | None, *, config_is_known: bool) -> tuple[Grid, Grid]:
    """Open heads and all heads of every group, each [layers, groups], NaN where there is none."""
    opened, there = source.open_heads("attention"), source.has_head("attention")
    numbers = {}
    for layer, heads in enumerate(there.sum(1).tolist()):
        number = source.key_value_heads.get(layer) if key_value_heads is None else key_value_heads
        if not heads:
            continue
        if number is None and config_is_known and not source.key_value_heads:
            number = heads  # the config names none
        if number is None:
            raise HeadEditError(
                f"The number of key-value heads of layer {layer} is not known; give it: key_value_heads=..."
            )
        if number < 1 or heads % number:
            raise HeadEditError(f"key_value_heads: found {number}, which does not divide the {heads} heads of a layer.")
        numbers[layer] = number
    counts = torch.full((len(there), max(numbers.values())), torch.nan)
    sizes = counts.clone()
    for layer, number in numbers.items():
        row = rearrange(opened[layer][there[layer]], "(groups heads) -> groups heads", groups=number)
        counts[layer, :number], sizes[layer, :number] = row.sum(1).float(), row.shape[1]
    return counts.numpy(), sizes.numpy()
