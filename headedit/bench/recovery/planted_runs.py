"""Methods on planted problems: one run as plain arguments and a plain row, and many of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from headedit.bench.compare.methods import Changes, Problem, check_changes, method
from headedit.bench.parallel import run_units
from headedit.bench.recovery.planted import f1, plant, token_accuracy
from headedit.bench.recovery.planted_model import check_shape
from headedit.bench.results import Row
from headedit.data.batches import PadRight
from headedit.data.losses import example_losses
from headedit.errors import HeadEditError


def planted_unit(shape: str, seed: int, recipe: str, problem: Mapping[str, Any], changes: Mapping[str, Any]) -> Row:
    """Trains and tests one method on one planted problem.

    Args:
        shape: of the model.
        seed: of the problem and of the training.
        recipe: the method's name.
        problem: arguments of ``plant``.
        changes: of the method's settings.

    Returns:
        Shape, seed, examples, recipe; F1 of offsets and of scales, None where nothing chooses; token accuracy and loss
        in nats per token on the test examples, and the unedited model's accuracy; open gates and heads; parameters in
        effect; seconds of the training; the learning rate of LoRA.
    """
    planted = plant(shape, seed, **problem)
    outcome = method(recipe, planted=True)(
        Problem(
            fresh=planted.fresh,
            train=planted.train,
            score=lambda model: token_accuracy(model, planted.test),
            seed=seed,
            truth=planted.truth,
        ),
        changes,
    )
    found, truth = outcome.found, planted.truth
    return {
        "shape": shape,
        "seed": seed,
        "examples": len(planted.train),
        "recipe": recipe,
        "f1_offset": None if found is None else f1(found["offset"], truth["offset"]),
        "f1_scale": None if found is None else f1(found["scale"], truth["scale"]),
        "accuracy": outcome.score,
        "unedited": planted.base_agreement,
        "loss": example_losses(outcome.model, planted.test, PadRight(), 32).mean().item(),
        "gates": outcome.gates,
        "heads": outcome.heads,
        "parameters": outcome.parameters,
        "seconds": round(outcome.seconds, 2),
        "learning_rate": outcome.details.get("learning_rate"),
    }


def run_planted(
    shapes: Sequence[str],
    seeds: Sequence[int],
    recipes: Sequence[str],
    problems: Sequence[Mapping[str, Any]],
    changes: Changes | None,
    jobs: int,
    progress: bool,
) -> list[Row]:
    """``planted_unit`` for every problem, shape, seed and recipe, in this order.

    Raises:
        HeadEditError: there is no such shape or method, or nothing to run.
    """
    for shape in shapes:
        check_shape(shape)
    check_changes(recipes, changes, planted=True)
    units = [
        {
            "shape": shape,
            "seed": seed,
            "recipe": recipe,
            "problem": dict(problem),
            "changes": dict((changes or {}).get(recipe, {})),
        }
        for problem in problems
        for shape in shapes
        for seed in seeds
        for recipe in recipes
    ]
    if not units:
        raise HeadEditError("There is nothing to run: give at least one shape, seed and recipe.")
    names = [_name(unit) for unit in units]
    return run_units(planted_unit, units, names=names, jobs=jobs, progress=progress)


def _name(unit: Mapping[str, Any]) -> str:
    examples = unit["problem"].get("examples")
    return f"{unit['recipe']}, {unit['shape']} {unit['seed']}" + (f", {examples} examples" if examples else "")
