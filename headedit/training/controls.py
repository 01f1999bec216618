"""Controls: what the chosen heads are worth beside random ones, random vectors, and every head without gates."""

import random
from collections.abc import Callable
from typing import Any

import torch

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates, open_gates
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.localise import Localise
from headedit.training.recipes.refit import Refit, Ungated
from headedit.training.recipes.session import Session

Metric = Callable[[], float]


def run_controls(session: Session, recipe: Recipe, metric: Metric | None) -> dict[str, dict[str, Any]]:
    """Fits and measures the controls of a finished run; the edits are then what they were.

    ``random heads``: as many random offset and scale gates, refitted. ``matched norm``: the chosen gates, with random
    vectors of the same norms. ``no gate``: every head edited without gates.

    Args:
        session: of the run; its edits are the trained ones.
        recipe: gives epochs, batch and the smallest number of steps.
        metric: measures the edited model.

    Returns:
        For ``chosen heads`` and each control: gates, validation_loss in nats a token, metric; None where not measured.
    """
    edits = session.edits
    trained = edits.snapshot()
    figures = {"chosen heads": measured(session, metric)}
    chosen = open_gates(edits.module)
    rng = random.Random(session.seed)
    match_norms(edits, chosen, session.seed)
    figures["matched norm"] = measured(session, metric)
    same: dict[str, Any] = {"epochs": recipe.epochs, "batch_size": recipe.batch_size}
    if isinstance(recipe, Localise | Refit):
        same["min_steps"] = recipe.min_steps
    fitted: dict[str, Recipe] = {"random heads": Refit(**same), "no gate": Ungated(**same)}
    for name, control in fitted.items():
        if name == "random heads" and not chosen:
            continue
        folder = session.folder / "controls" / name.replace(" ", "-")
        session.restart()
        if name == "random heads":
            freeze_gates(edits.module, draw_like(all_gates(edits.module), chosen, rng))
        beside = session.beside(folder)
        control.run(beside)
        figures[name] = measured(session, metric)
        beside.journal.clear()
    edits.restore(trained)
    return figures


def measured(session: Session, metric: Metric | None) -> dict[str, Any]:
    """Open gates, validation loss and metric of the edits as they are."""
    counts = session.edits.count_open()
    with session.plainly():  # what somebody else's metric does with the model is not known
        value = None if metric is None else float(metric())
    return {
        "gates": counts["offset"][0] + counts["scale"][0],
        "validation_loss": None if session.valid is None else session.measure().mean().item(),
        "metric": value,
    }


def draw_like(gates: list[GateIndex], chosen: list[GateIndex], rng: random.Random) -> list[GateIndex]:
    """Random gates, as many on each kind of vector as were chosen."""
    drawn: list[GateIndex] = []
    for vector in sorted({gate.vector for gate in chosen}):
        candidates = [gate for gate in gates if gate.vector == vector]
        drawn += rng.sample(candidates, sum(gate.vector == vector for gate in chosen))
    return drawn


@torch.no_grad()
def match_norms(edits: HeadEdits, chosen: list[GateIndex], seed: int) -> None:
    """Replaces the vectors under these gates by random ones of the same norm."""
    generator = torch.Generator().manual_seed(seed)
    sites = list(edits.module)
    for gate in chosen:
        edit = sites[gate.site]
        for name in edit.vectors_of(gate.vector):
            row = edit.vectors[name][gate.head]
            noise = torch.randn(row.shape, generator=generator).to(row)
            row.copy_(noise * (row.norm() / noise.norm()))
