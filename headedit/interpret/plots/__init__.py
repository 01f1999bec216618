"""Pictures of edits and runs; every function returns a matplotlib figure and does not show it."""

from headedit.interpret.plots.agreement import agreement
from headedit.interpret.plots.compare import compare
from headedit.interpret.plots.effects import effects
from headedit.interpret.plots.gate_map import GateMap, gate_map
from headedit.interpret.plots.gates import gates
from headedit.interpret.plots.groups import groups
from headedit.interpret.plots.history import history
from headedit.interpret.plots.parameters import parameters
from headedit.interpret.plots.path import path
from headedit.interpret.plots.probes import probes
from headedit.interpret.plots.selection import selection
from headedit.interpret.plots.stability import stability
from headedit.interpret.plots.tokens import tokens
from headedit.interpret.plots.types import types

__all__ = [
    "GateMap",
    "agreement",
    "compare",
    "effects",
    "gate_map",
    "gates",
    "groups",
    "history",
    "parameters",
    "path",
    "probes",
    "selection",
    "stability",
    "tokens",
    "types",
]
