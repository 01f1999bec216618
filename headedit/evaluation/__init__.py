"""Evaluating edited models: batched generation and exact match with its baselines."""

from headedit.evaluation.exact_match import ExactMatch, exact_match

__all__ = ["ExactMatch", "exact_match"]
