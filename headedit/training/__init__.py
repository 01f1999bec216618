"""Training edits: records, the objective, the trainer, recipes, and ``fit``."""

from headedit.training.fit import fit
from headedit.training.objective import Objective
from headedit.training.records import read_records
from headedit.training.run import Run
from headedit.training.trainer import HeadEditTrainer

__all__ = ["HeadEditTrainer", "Objective", "Run", "fit", "read_records"]
