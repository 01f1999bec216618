"""Looking at edits: pictures of gates and of runs, and evidence for heads."""

from headedit.interpret import plot
from headedit.interpret.iti import HeadEvidence, iti

__all__ = ["HeadEvidence", "iti", "plot"]
