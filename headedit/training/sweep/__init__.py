"""Sweeps: one configuration with lists, and a run for every combination."""
