"""The results of lm-evaluation-harness, with edits and without, as a table."""

from dataclasses import asdict, dataclass
from typing import Any

from headedit.evaluation.scores.statistics import PairedTest
from headedit.io.tables import markdown_table

LEFT = 4
"""Number of columns that hold words, which are aligned left."""


@dataclass(frozen=True, kw_only=True)
class HarnessRow:
    """One metric of one task or group of tasks.

    Fields:
        task: the harness's name.
        metric: the harness's name, such as ``acc`` or ``acc_norm``.
        filter: how answers were taken from responses; ``none`` where they were not.
        n: number of documents; None for a group without a count.
        shots: examples in the prompt; None for a group.
        higher_is_better: None where the harness does not say.
        value, stderr: of the model as it was given, edited if it has edits.
        base_value, base_stderr: with the edits switched off; None where the base was not measured.
        paired: the test of edited against base on the same documents; None for groups, without a base, and for
            metrics that are not a mean over documents.
    """

    task: str
    metric: str
    filter: str
    n: int | None
    shots: int | None
    higher_is_better: bool | None
    value: float
    stderr: float | None
    base_value: float | None
    base_stderr: float | None
    paired: PairedTest | None


@dataclass(frozen=True, kw_only=True)
class HarnessReport:
    """The results of the harness.

    Fields:
        rows: one per task and metric.
        edited: whether the values are of an edited model.
        settings: how it was run.
        versions: of the harness, and of each task.
        seconds: wall-clock time, of both models together.
    """

    rows: list[HarnessRow]
    edited: bool
    settings: dict[str, Any]
    versions: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, as text."""
        paired = any(row.base_value is not None for row in self.rows)
        header = ["task", "n", "shots", "metric"]
        header += ["base", "edited", "difference", "p"] if paired else ["edited" if self.edited else "base"]
        return header, [_cells(row, paired) for row in self.rows]

    def markdown(self) -> str:
        """The table, with how it was measured."""
        header, rows = self.cells()
        tests = sorted({row.paired.name for row in self.rows if row.paired is not None})
        notes = [f"lm_eval {self.versions['lm_eval']}, {self.seconds:.0f} s. The standard error follows ±."]
        if tests:
            notes.append(f"p: two-sided, of no difference on the same documents ({'; '.join(tests)}).")
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None)
        table = markdown_table(header, rows, left=LEFT)
        return f"# lm-evaluation-harness\n\n{table}\n\n{' '.join(notes)}\n\nSettings: {settings}.\n"


def _cells(row: HarnessRow, paired: bool) -> list[str]:
    metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
    arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
    cells = [row.task, "" if row.n is None else str(row.n), "" if row.shots is None else str(row.shots)]
    value = _with_error(row.value, row.stderr)
    if not paired:
        return [*cells, metric + arrow, value]
    if row.base_value is None:
        return [*cells, metric + arrow, "", value, "", ""]
    p = "" if row.paired is None else f"{row.paired.p:.3g}"
    base = _with_error(row.base_value, row.base_stderr)
    return [*cells, metric + arrow, base, value, f"{row.value - row.base_value:+.4f}", p]


def _with_error(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"
