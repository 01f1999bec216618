"""Looking at edits: pictures of gates and of runs, what edits say, and evidence for heads."""

from headedit.interpret import plot
from headedit.interpret.agreement import agreement, separation
from headedit.interpret.attribution import HeadEstimates, attribute, integrate
from headedit.interpret.causal import HeadEffects, leave_one_out, patch
from headedit.interpret.effect_plot import head_norms
from headedit.interpret.evidence import evidence
from headedit.interpret.iti import HeadEvidence, iti
from headedit.interpret.tokens import HeadWords, tokens

__all__ = [
    "HeadEffects",
    "HeadEstimates",
    "HeadEvidence",
    "HeadWords",
    "agreement",
    "attribute",
    "evidence",
    "head_norms",
    "integrate",
    "iti",
    "leave_one_out",
    "patch",
    "plot",
    "separation",
    "tokens",
]
