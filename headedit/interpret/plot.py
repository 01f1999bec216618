"""Pictures of edits and runs; every function returns a matplotlib figure and shows nothing by itself."""

from headedit.interpret.gate_plot import gates
from headedit.interpret.history_plot import history

__all__ = ["gates", "history"]
