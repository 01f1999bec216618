"""The pictures of a run, as PNG inside the page."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from headedit.interpret import plots
from headedit.interpret.report.folder import RunFolder

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

_DPI = 120


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a report.

    Fields:
        title: what it is.
        text: what it shows.
        source: a data URL.
        width, height: in pixels of the page.
    """

    title: str
    text: str
    source: str
    width: int
    height: int


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
    for title, text, draw in drawn:
        yield _picture(title, text, draw())


def _picture(title: str, text: str, figure: Figure) -> Picture:
    payload = io.BytesIO()
    try:
        figure.savefig(payload, format="png", dpi=_DPI)
    finally:
        plt.close(figure)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    source = f"data:image/png;base64,{base64.b64encode(payload.getvalue()).decode()}"
    return Picture(title=title, text=text, source=source, width=width, height=height)
