"""Pictures of edits and runs; every function returns a matplotlib figure and shows nothing by itself."""

from headedit.interpret.agreement_plot import agreement
from headedit.interpret.compare_plot import compare
from headedit.interpret.effect_plot import effects
from headedit.interpret.evidence_plot import evidence
from headedit.interpret.gate_plot import gates
from headedit.interpret.groups_plot import groups
from headedit.interpret.history_plot import history
from headedit.interpret.path_plot import path
from headedit.interpret.stability_plot import stability
from headedit.interpret.tokens_plot import tokens
from headedit.interpret.types_plot import types

__all__ = [
    "agreement",
    "compare",
    "effects",
    "evidence",
    "gates",
    "groups",
    "history",
    "path",
    "stability",
    "tokens",
    "types",
]
