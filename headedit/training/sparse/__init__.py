"""Sparse tuning: each step trains a share of the layers."""
