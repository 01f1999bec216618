"""Pictures of edits and runs; every function returns a matplotlib figure and shows nothing by itself."""

from headedit.interpret.evidence_plot import evidence
from headedit.interpret.gate_plot import gates
from headedit.interpret.history_plot import history
from headedit.interpret.path_plot import path

__all__ = ["evidence", "gates", "history", "path"]
