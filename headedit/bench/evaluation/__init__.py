"""How fast a task is evaluated, next to lm-evaluation-harness."""

from headedit.bench.evaluation.measure import measure_evaluation

__all__ = ["measure_evaluation"]
