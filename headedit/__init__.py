"""Learned, gated edits to the attention heads of any Hugging Face causal LM.

>>> import headedit
>>> headedit.__version__
'0.1.0'

Everything public is here, and loads what it needs when it is first used, so that importing is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headedit.errors import HeadEditError
from headedit.io.notebook import register_html_view
from headedit.version import __version__

if TYPE_CHECKING:
    from headedit import demo
    from headedit.bench.compare.config import CompareConfig
    from headedit.bench.compare.run import compare
    from headedit.checks.certificate import certify
    from headedit.checks.doctor import doctor
    from headedit.data import Data, DataConfig, Records, load_data, read_records
    from headedit.edits import EditConfig, Gates, HeadEdits, attach, load
    from headedit.edits.adapter import Adapter
    from headedit.edits.attach import handle
    from headedit.edits.certificate import Certificate
    from headedit.edits.importing.load import import_jola, import_lofit, read_lofit
    from headedit.edits.status import ModelStatus
    from headedit.evaluation import Report, Source, Task, evaluate, exact_match
    from headedit.hf.loading import load_model
    from headedit.interpret import plots as plot
    from headedit.interpret.evidence.agreement import agreement, separation
    from headedit.interpret.evidence.attribution import HeadEstimates, attribute, integrate
    from headedit.interpret.evidence.causal import HeadEffects, leave_one_out, patch
    from headedit.interpret.evidence.heads import Head
    from headedit.interpret.evidence.iti import HeadProbes, iti
    from headedit.interpret.evidence.table import evidence
    from headedit.interpret.evidence.tokens import HeadWords, ScaleChange, TokenChanges, tokens
    from headedit.interpret.plots.effects import head_norms
    from headedit.runs.history import History
    from headedit.runs.pruning_path import Level, PruningPath
    from headedit.runs.run import Run
    from headedit.runs.selection import Selection
    from headedit.runs.stability import Spread, Stability
    from headedit.specs import HeadSite, Spec
    from headedit.specs.draft import Draft, draft_spec
    from headedit.training.config import RunConfig
    from headedit.training.fit import fit
    from headedit.training.loop.objective import Objective
    from headedit.training.loop.trainer import HeadEditMixin, HeadEditTrainer
    from headedit.training.sparse.sparse_tuning import SparseTuning
    from headedit.training.steering.steer import steer
    from headedit.training.steering.steering import Steering
    from headedit.training.train import train

__all__ = [
    "Adapter",
    "Certificate",
    "CompareConfig",
    "Data",
    "DataConfig",
    "Draft",
    "EditConfig",
    "Gates",
    "Head",
    "HeadEditError",
    "HeadEditMixin",
    "HeadEditTrainer",
    "HeadEdits",
    "HeadEffects",
    "HeadEstimates",
    "HeadProbes",
    "HeadSite",
    "HeadWords",
    "History",
    "Level",
    "ModelStatus",
    "Objective",
    "PruningPath",
    "Records",
    "Report",
    "Run",
    "RunConfig",
    "ScaleChange",
    "Selection",
    "Source",
    "SparseTuning",
    "Spec",
    "Spread",
    "Stability",
    "Steering",
    "Task",
    "TokenChanges",
    "__version__",
    "agreement",
    "attach",
    "attribute",
    "certify",
    "compare",
    "demo",
    "doctor",
    "draft_spec",
    "evaluate",
    "evidence",
    "exact_match",
    "fit",
    "handle",
    "head_norms",
    "import_jola",
    "import_lofit",
    "integrate",
    "iti",
    "leave_one_out",
    "load",
    "load_data",
    "load_model",
    "patch",
    "plot",
    "read_lofit",
    "read_records",
    "separation",
    "steer",
    "tokens",
    "train",
]

_HOMES = {
    "headedit.edits": (
        "EditConfig",
        "Gates",
        "HeadEdits",
        "attach",
        "load",
    ),
    "headedit.edits.adapter": ("Adapter",),
    "headedit.edits.status": ("ModelStatus",),
    "headedit.edits.attach": ("handle",),
    "headedit.edits.certificate": ("Certificate",),
    "headedit.edits.importing.load": (
        "import_jola",
        "import_lofit",
        "read_lofit",
    ),
    "headedit.hf.loading": ("load_model",),
    "headedit.specs": (
        "HeadSite",
        "Spec",
    ),
    "headedit.specs.draft": (
        "Draft",
        "draft_spec",
    ),
    "headedit.data": (
        "Data",
        "DataConfig",
        "Records",
        "load_data",
        "read_records",
    ),
    "headedit.runs.history": ("History",),
    "headedit.runs.selection": ("Selection",),
    "headedit.runs.pruning_path": (
        "Level",
        "PruningPath",
    ),
    "headedit.runs.run": ("Run",),
    "headedit.runs.stability": (
        "Spread",
        "Stability",
    ),
    "headedit.checks.certificate": ("certify",),
    "headedit.checks.doctor": ("doctor",),
    "headedit.training.config": ("RunConfig",),
    "headedit.training.fit": ("fit",),
    "headedit.training.loop.objective": ("Objective",),
    "headedit.training.loop.trainer": (
        "HeadEditMixin",
        "HeadEditTrainer",
    ),
    "headedit.training.sparse.sparse_tuning": ("SparseTuning",),
    "headedit.training.steering.steer": ("steer",),
    "headedit.training.steering.steering": ("Steering",),
    "headedit.training.train": ("train",),
    "headedit.evaluation": (
        "Report",
        "Source",
        "Task",
        "evaluate",
        "exact_match",
    ),
    "headedit.bench.compare.run": ("compare",),
    "headedit.bench.compare.config": ("CompareConfig",),
    "headedit.interpret.evidence.agreement": (
        "agreement",
        "separation",
    ),
    "headedit.interpret.evidence.attribution": (
        "HeadEstimates",
        "attribute",
        "integrate",
    ),
    "headedit.interpret.evidence.causal": (
        "HeadEffects",
        "leave_one_out",
        "patch",
    ),
    "headedit.interpret.evidence.heads": ("Head",),
    "headedit.interpret.evidence.iti": (
        "HeadProbes",
        "iti",
    ),
    "headedit.interpret.evidence.table": ("evidence",),
    "headedit.interpret.evidence.tokens": (
        "HeadWords",
        "ScaleChange",
        "TokenChanges",
        "tokens",
    ),
    "headedit.interpret.plots.effects": ("head_norms",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {"demo": "headedit.demo", "plot": "headedit.interpret.plots"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOME_OF:
        raise AttributeError(f"module 'headedit' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _html_of_edits(edits: Any) -> str:
    from headedit.interpret.plots.jupyter import html

    return html(edits)


register_html_view(_html_of_edits)
