"""Sparse tuning: a share of the layers in each step."""
