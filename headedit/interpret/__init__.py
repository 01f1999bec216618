"""Looking at edits: pictures of gates and of runs."""

from headedit.interpret import plot

__all__ = ["plot"]
