"""Edits folded into the weights: in place, exported to another type, or as an adapter of PEFT."""
