"""Saved edits: their format, reading and writing them, their card, and the hub."""
