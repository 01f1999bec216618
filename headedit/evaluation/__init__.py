"""Evaluation of edited models: tasks, answers by generation or likelihood, scores, and reports with baselines."""

from headedit.evaluation.evaluate import evaluate
from headedit.evaluation.exact_match import exact_match
from headedit.evaluation.reports.report import Report
from headedit.evaluation.tasks.task import Source, Task

__all__ = ["Report", "Source", "Task", "evaluate", "exact_match"]
