"""Evaluating edited models: tasks, generation and choices, metrics, and reports with their baselines."""

from headedit.evaluation.evaluate import evaluate
from headedit.evaluation.exact_match import exact_match
from headedit.evaluation.reports.report import Report
from headedit.evaluation.tasks.task import Source, Task

__all__ = ["Report", "Source", "Task", "evaluate", "exact_match"]
