"""Reads saved reports of evaluations for tables."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io.json import parse_json

_NEEDED = {"task": str, "n": int, "metric": str, "score": dict, "constant": dict, "settings": dict}


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The reports of one model.

    Fields:
        name: of the folder or file.
        model: the model's name without the folders before it.
        reports: one per task, by the task's name, as ``headedit.evaluation.reports.report.Report.to_dict`` has them.
    """

    name: str
    model: str
    reports: dict[str, dict[str, Any]]


def read_run(path: str | Path) -> SavedRun:
    """Reads one report, a list of them, or all those in a folder.

    Args:
        path: a JSON file that ``headedit eval`` wrote, or a folder with such files; others in it are ignored.

    Raises:
        HeadEditError: there is nothing there, it is no report, a report is incomplete, or two are of one task or of
            two models.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise HeadEditError(f"{path}: there is no such file or folder.")
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in files:
        for report in _reports(file, whole_folder=path.is_dir()):
            if report["task"] in found:
                first = found[report["task"]][0]
                raise HeadEditError(
                    f"{file}: is a second report of '{report['task']}', next to {first}. Name one of the two."
                )
            found[report["task"]] = file, report
    if not found:
        raise HeadEditError(f"{path}: holds no report. `headedit eval --output FILE` writes one.")
    models = {str(report["settings"].get("model", "")) for _, report in found.values()}
    if len(models) > 1:
        raise HeadEditError(f"{path}: holds reports of several models: {', '.join(sorted(models))}. Name one of them.")
    resolved = path.resolve()
    return SavedRun(
        name=resolved.name if path.is_dir() else resolved.stem,
        model=Path(models.pop()).name,
        reports={task: report for task, (_, report) in found.items()},
    )


def _reports(file: Path, *, whole_folder: bool) -> Iterator[dict[str, Any]]:
    try:
        data = parse_json(file.read_text(encoding="utf-8"), file.name)
    except (OSError, UnicodeDecodeError, HeadEditError) as error:
        raise HeadEditError(f"{file}: cannot be read as JSON ({error}).") from None
    for item in data if isinstance(data, list) else [data]:
        if whole_folder and not (isinstance(item, Mapping) and "task" in item and "score" in item):
            continue
        yield _checked(file, item)


def _checked(file: Path, item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise HeadEditError(f"{file}: expected a report of `headedit eval`, found {type(item).__name__}.")
    for key, kind in _NEEDED.items():
        if not isinstance(item.get(key), kind):
            raise HeadEditError(f"{file}: is not a report of `headedit eval`; it lacks '{key}'.")
    for key, score in (("score", item["score"]), ("base", item.get("base"))):
        if score is not None and not (isinstance(score, dict) and {"metrics", "interval"} <= set(score)):
            raise HeadEditError(f"{file}: is not a report of `headedit eval`; '{key}' lacks 'metrics' or 'interval'.")
    return item
