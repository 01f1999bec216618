"""Learned, gated edits to the attention heads of any Hugging Face causal LM.

>>> import headedit
>>> headedit.__version__
'0.1.0'

Everything public is here, and loads what it needs when it is first used, so that importing is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headedit.errors import HeadEditError
from headedit.version import __version__
from headedit.views import show_edits_by

if TYPE_CHECKING:
    from headedit.edits import EditConfig, Gates, HeadEdits, attach, load
    from headedit.evaluation import Report, Source, Task, evaluate, exact_match
    from headedit.interpret import HeadEvidence, iti, plot
    from headedit.specs import HeadSite
    from headedit.training.config import RunConfig
    from headedit.training.data import Data, DataConfig, load_data, read_records
    from headedit.training.fit import fit
    from headedit.training.objective import Objective
    from headedit.training.run import Run
    from headedit.training.sparse_tuning import SparseTuning
    from headedit.training.train import train
    from headedit.training.trainer import HeadEditMixin, HeadEditTrainer

__all__ = [
    "Data",
    "DataConfig",
    "EditConfig",
    "Gates",
    "HeadEditError",
    "HeadEditMixin",
    "HeadEditTrainer",
    "HeadEdits",
    "HeadEvidence",
    "HeadSite",
    "Objective",
    "Report",
    "Run",
    "RunConfig",
    "Source",
    "SparseTuning",
    "Task",
    "__version__",
    "attach",
    "evaluate",
    "exact_match",
    "fit",
    "iti",
    "load",
    "load_data",
    "plot",
    "read_records",
    "train",
]

_HOMES = {
    "headedit.edits": ("EditConfig", "Gates", "HeadEdits", "attach", "load"),
    "headedit.evaluation": ("Report", "Source", "Task", "evaluate", "exact_match"),
    "headedit.interpret": ("HeadEvidence", "iti", "plot"),
    "headedit.specs": ("HeadSite",),
    "headedit.training.config": ("RunConfig",),
    "headedit.training.data": ("Data", "DataConfig", "load_data", "read_records"),
    "headedit.training.fit": ("fit",),
    "headedit.training.objective": ("Objective",),
    "headedit.training.run": ("Run",),
    "headedit.training.sparse_tuning": ("SparseTuning",),
    "headedit.training.train": ("train",),
    "headedit.training.trainer": ("HeadEditMixin", "HeadEditTrainer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'headedit' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _html_of_edits(edits: Any) -> str:
    from headedit.interpret.jupyter import html

    return html(edits)


show_edits_by(_html_of_edits)
