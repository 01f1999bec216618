"""The pictures of a run, as SVG inside the page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from headedit.interpret import plots
from headedit.interpret.report.drawing import svg_of
from headedit.interpret.report.folder import RunFolder

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a report.

    Fields:
        title: what it is.
        text: what it shows.
        svg: the picture.
    """

    title: str
    text: str
    svg: str


def pictures(run: RunFolder, evidence: "pandas.DataFrame | None") -> Iterator[Picture]:
    """Draws the pictures of a run, one after the other.

    Raises:
        HeadEditError: the history holds no logged step.
    """
    folder, stability = run.path, run.record.get("stability")
    drawn: list[tuple[str, str, Callable[[], Figure]]] = [
        ("Gates", "The gates of offsets and scales in eval mode, layers by heads.", lambda: plots.gates(folder)),
        ("Effect sizes", "The size of every head's offset and of its scale.", lambda: plots.effects(folder)),
    ]
    if run.source.group_size("attention"):
        text = "How many of the heads that share a key-value head have an open gate."
        drawn.append(("Key-value heads", text, lambda: plots.groups(folder)))
    if evidence is not None and bool(evidence["open"].any()):
        text = (
            "Cheap estimates of what a head's edit does, against the measured effect; ρ is Spearman's rank correlation."
        )
        drawn.append(("Agreement of the evidence", text, lambda: plots.agreement(evidence)))
    if run.levels is not None and any(level.loss is not None for level in run.levels.levels):
        text = "Validation loss against the number of open gates, and the number that was kept."
        drawn.append(("Pruning path", text, lambda: plots.path(folder)))
    if stability and all((folder / f"seed-{seed}").is_dir() for seed in stability["seeds"][1:]):
        text = "Which heads the runs with other seeds chose, and how well they agree."
        drawn.append(("Seeds", text, lambda: plots.stability(folder)))
    if run.selection is not None:
        text = "How often halves of the examples select each gate; the framed ones pass the threshold."
        drawn.append(("How sure the heads are", text, lambda: plots.selection(folder)))
    text = "Losses, open gates and learning rates, step by step."
    drawn.append(("History", text, lambda: plots.history(folder)))
    for number, (title, text, draw) in enumerate(drawn):
        figure = draw()
        try:
            yield Picture(title=title, text=text, svg=svg_of(figure, f"picture-{number}", f"{title}. {text}"))
        finally:
            plt.close(figure)
