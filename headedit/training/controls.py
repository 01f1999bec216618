"""Controls: compares the chosen heads with random heads, random vectors, and every head without gates."""

import random
from collections.abc import Callable
from typing import Any

import torch

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates, open_gates
from headedit.runs.folder import CONTROLS
from headedit.runs.stability import Spread, Stability, agreement
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.localise import Localise
from headedit.training.recipes.refit import Refit, Ungated
from headedit.training.recipes.session import Session

Metric = Callable[[], float]
"""Measures the edited model, called without arguments."""


def run_controls(session: Session, recipe: Recipe, metric: Metric | None) -> dict[str, dict[str, Any]]:
    """Fits and measures the controls of a finished run, and restores its edits.

    ``random heads``: as many random offset and scale gates, refitted. ``matched norm``: the chosen gates, with random
    vectors of the same norms. ``no gate``: every head edited, without gates.

    Args:
        session: the session of the run, with the trained edits.
        recipe: the recipe of the run, for epochs, batch size and least number of steps.
        metric: measures the edited model; None to measure the validation loss alone.

    Returns:
        ``gates``, ``validation_loss`` (nats per token) and ``metric`` of ``chosen heads`` and of each control; None
        for what was not measured.
    """
    edits = session.edits
    trained = edits.snapshot()
    figures = {"chosen heads": figures_of(session, metric)}
    chosen = open_gates(edits.module)
    rng = random.Random(session.seed)
    match_norms(edits, chosen, session.seed)
    figures["matched norm"] = figures_of(session, metric)
    settings: dict[str, Any] = {"epochs": recipe.epochs, "batch_size": recipe.batch_size}
    if isinstance(recipe, Localise | Refit):
        settings["min_steps"] = recipe.min_steps
    fitted: dict[str, Recipe] = {"random heads": Refit(**settings), "no gate": Ungated(**settings)}
    for name, control in fitted.items():
        if name == "random heads" and not chosen:
            continue
        folder = session.folder / CONTROLS / name.replace(" ", "-")
        session.restore_start()
        if name == "random heads":
            freeze_gates(edits.module, draw_like(all_gates(edits.module), chosen, rng))
        control_session = session.in_folder(folder)
        control.run(control_session)
        figures[name] = figures_of(session, metric)
        control_session.journal.clear()
    edits.restore(trained)
    return figures


def figures_of(session: Session, metric: Metric | None) -> dict[str, Any]:
    """Number of open gates, validation loss (nats per token) and metric of the current edits."""
    counts = session.edits.count_open()
    with session.without_prefix_cache():  # the metric is the user's and may do anything with the model
        value = None if metric is None else float(metric())
    return {
        "gates": counts["offset"][0] + counts["scale"][0],
        "validation_loss": None if session.valid is None else session.example_losses().mean().item(),
        "metric": value,
    }


def draw_like(gates: list[GateIndex], chosen: list[GateIndex], rng: random.Random) -> list[GateIndex]:
    """Random gates, as many of each kind of vector as were chosen."""
    drawn: list[GateIndex] = []
    for vector in sorted({gate.vector for gate in chosen}):
        candidates = [gate for gate in gates if gate.vector == vector]
        drawn += rng.sample(candidates, sum(gate.vector == vector for gate in chosen))
    return drawn


@torch.no_grad()
def match_norms(edits: HeadEdits, chosen: list[GateIndex], seed: int) -> None:
    """Replaces the vectors of these gates by random ones of the same norms."""
    generator = torch.Generator().manual_seed(seed)
    sites = list(edits.module)
    for gate in chosen:
        edit = sites[gate.site]
        for name in edit.vectors_of(gate.vector):
            row = edit.vectors[name][gate.head]
            noise = torch.randn(row.shape, generator=generator).to(row)
            row.copy_(noise * (row.norm() / noise.norm()))


def stability_of(edits: HeadEdits, seed: int, figures: list[dict[str, Any]]) -> Stability:
    """How far runs of several seeds agree.

    Args:
        edits: the handle.
        seed: of the first run.
        figures: of each run, by ``figures_of``, with the chosen ``heads``.
    """
    chosen = [figure["heads"] for figure in figures]
    jaccard, chance = agreement(chosen, edits.count_open()["any"][1])
    spreads = {
        key: None if figures[0][key] is None else Spread.of([figure[key] for figure in figures])
        for key in ("validation_loss", "metric")
    }
    return Stability(
        seeds=list(range(seed, seed + len(figures))),
        heads=[len(heads) for heads in chosen],
        jaccard=jaccard,
        chance=chance,
        **spreads,
    )
