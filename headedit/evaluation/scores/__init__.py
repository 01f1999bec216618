"""Scores of answers: metrics, and intervals around them."""
