"""``headedit demo``: teaches the embedded model one task from 200 examples, and shows which heads were chosen."""

import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from headedit.bench.results import BenchResult
from headedit.data import to_pair
from headedit.demo import MODEL_FOLDER, tasks
from headedit.edits import attach
from headedit.errors import HeadEditError, suggest
from headedit.evaluation import Report, exact_match
from headedit.hf.loading import load_model, load_tokenizer
from headedit.interpret import plots
from headedit.io.files import write_atomically
from headedit.runs.files import EDITS_CONFIG_FILE, EDITS_TENSOR_FILE, GATES_PLOT, HISTORY_PLOT, PATH_PLOT
from headedit.runs.run import Run
from headedit.training.fit import fit

TRAIN, TEST = 200, 500
DEFAULT_TASK = "reverse"
SUMMARY = "summary.md"


@dataclass(frozen=True)
class Demo:
    """What the demo measured, and the files that it wrote.

    Fields:
        task: the task that was taught.
        report: accuracy on the test examples, edited and base, with the constant-answer baseline.
        run: the training run.
        parameters: number of values in the vectors of the open gates.
        seconds: from loading the model to the last picture.
        files: the written files, in the order to look at them.
    """

    task: str
    report: Report
    run: Run
    parameters: int
    seconds: float
    files: list[Path]

    def rows(self) -> list[tuple[str, str]]:
        """The summary as (what, value)."""
        report = self.report
        return [
            ("task", f"'{self.task}', which the prompt does not name"),
            ("examples", f"{TRAIN} to train on; tested on {report.n} unseen"),
            ("base model", f"{report.base_accuracy:.1%} exact match"),
            ("constant answer", f"{report.constant_accuracy:.1%} ('{report.constant_answer}')"),
            ("edited model", f"{report.accuracy:.1%} exact match"),
            *self.run.open_rows(),
            ("parameters of the edits", f"{self.parameters:,}"),
            ("time", f"{self.seconds:.0f} s, of which training {self.run.record['seconds']:.0f} s"),
        ]


def run_demo(
    output_dir: "str | PathLike[str]", *, task: str = DEFAULT_TASK, seed: int = 0, progress: bool = True
) -> Demo:
    """Runs the demo and writes the edits, three pictures and a summary.

    Args:
        output_dir: folder for everything that is written.
        task: one of the six tasks of ``headedit.demo.tasks``.
        seed: of the examples, their order and the gates' noise.
        progress: show bars.

    Raises:
        HeadEditError: there is no such task, or the folder cannot be written.
    """
    if task not in tasks.TASKS:
        raise HeadEditError(f"There is no task '{task}'.{suggest(task, tasks.TASKS)}")
    started = time.perf_counter()
    model = load_model(str(MODEL_FOLDER), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    rows = tasks.records(task, TRAIN + TEST, cued=False, seed=seed)
    pairs = [to_pair(row, f"{task} example") for row in rows]
    train, test = pairs[:TRAIN], pairs[TRAIN:]
    edits = attach(model)
    again = (Path(output_dir) / SUMMARY).is_file()  # an earlier demo, which may be replaced
    run = fit(edits, train, tokenizer=tokenizer, output_dir=output_dir, overwrite=again, seed=seed, progress=progress)
    report = exact_match(model, tokenizer, test, edits=edits, batch_size=250, progress=progress)
    folder = run.output_dir
    files = [folder / name for name in (GATES_PLOT, PATH_PLOT, HISTORY_PLOT, SUMMARY)]
    title = f"Which heads learned '{task}': {report.base_accuracy:.0%} → {report.accuracy:.0%} exact match"
    plots.gates(edits, title=title).savefig(files[0], dpi=150)
    plots.path(run).savefig(files[1], dpi=150)
    plots.history(run).savefig(files[2], dpi=150)
    parameters = edits.count_effective_parameters()
    demo = Demo(task, report, run, parameters, time.perf_counter() - started, files)
    files[3].write_text(_markdown(demo), encoding="utf-8")
    return demo


def add_to_summary(output_dir: "str | PathLike[str]", compared: BenchResult) -> None:
    """Adds the tables of a comparison to the summary of a demo."""
    file = Path(output_dir) / SUMMARY
    tables = compared.markdown().replace("\n## ", "\n### ").removeprefix("# ")
    write_atomically(file, f"{file.read_text(encoding='utf-8')}\n## {tables}".encode())


def _markdown(demo: Demo) -> str:
    table = "\n".join(f"| {what} | {value} |" for what, value in demo.rows())
    return (
        f"# headedit demo\n\n| | |\n|---|---|\n{table}\n\n"
        f"![Gates, layers by heads]({GATES_PLOT})\n\n![Validation loss along the pruning path]({PATH_PLOT})\n\n"
        f"![History of the run]({HISTORY_PLOT})\n\n"
        f"The edits are `{EDITS_CONFIG_FILE}` and `{EDITS_TENSOR_FILE}`; put them on a fresh copy of the model "
        "with `headedit.load(model, folder)`.\n"
    )
