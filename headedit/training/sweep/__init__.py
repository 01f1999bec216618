"""Sweeps: one config with lists of tasks, fields and seeds, and a run for every combination."""
