"""How much memory a training run needs on each device, computed before any weight is loaded."""

from headedit.training.memory_plan.advice import Change, advise
from headedit.training.memory_plan.planner import Plan, Planner, estimate
from headedit.training.memory_plan.setup import Setup

__all__ = ["Change", "Plan", "Planner", "Setup", "advise", "estimate"]
