"""The stages of a run: where each begins and ends, and the strip above a picture that names them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from headedit.interpret.palette import GRID, INK
from headedit.runs.history import History

_LETTER = 0.075  # inches of a letter of 8 points
_SHADES = (GRID, "white")


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Fields:
        name: such as ``search 1`` or ``refit``.
        start, end: the steps before its first and at its last logged row.
    """

    name: str
    start: float
    end: float


def stages_of(rows: History) -> list[Stage]:
    """The stages in their order; none where the rows do not name any."""
    found: list[Stage] = []
    end = 0.0
    for step, name in zip(*rows.column("stage"), strict=True):
        if found and found[-1].name == name:
            found[-1] = Stage(name, found[-1].start, step)
        else:
            found.append(Stage(str(name), end, step))
        end = step
    return found


def draw_strip(axis: Axes, stages: Sequence[Stage]) -> None:
    """Draws a box per stage with its name in it; a number, which the line above explains, where there is no room."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    low, high = axis.get_xlim()
    inches = figure.get_size_inches()[0] * 0.85 / (high - low)
    numbered: list[str] = []
    for i, stage in enumerate(stages):
        axis.axvspan(stage.start, stage.end, facecolor=_SHADES[i % 2], edgecolor=INK, linewidth=0.6)
        text = stage.name
        if len(text) * _LETTER > (stage.end - stage.start) * inches:
            text = str(i + 1)
            numbered.append(f"{i + 1}: {stage.name}")
        axis.text((stage.start + stage.end) / 2, 0.5, text, ha="center", va="center", fontsize=8, color="black")
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.tick_params(bottom=False)
    axis.spines[["top", "left", "right", "bottom"]].set_visible(False)
    title = "Stages" + (f"  ({', '.join(numbered)})" if numbered else "")
    axis.set_title(title, fontsize=9 if numbered else 11, wrap=True)
