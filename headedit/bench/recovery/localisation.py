"""Which recipe finds planted heads, how accurate it is, how many examples it takes, and what it does without any."""

from collections.abc import Iterable, Sequence
from typing import Any

from headedit.bench.compare.methods import LORA, NO_GATE, ORACLE, UNEDITED, Changes, methods
from headedit.bench.recovery.planted_model import SHAPES
from headedit.bench.recovery.planted_runs import run_planted
from headedit.bench.results import BenchResult, Row, counted, grouped, least, mean, table_of, whole_mean
from headedit.errors import HeadEditError

SIZES = (50, 100, 200, 500, 1000)
CURVE_RECIPES = ("localise", "jola", "lofit", LORA)
NOTHING_RECIPES = (UNEDITED, "localise", NO_GATE)


def bench_localise(
    shapes: Sequence[str] = SHAPES,
    seeds: Sequence[int] = range(5),
    recipes: Sequence[str] | None = None,
    *,
    changes: Changes | None = None,
    jobs: int = 1,
    progress: bool = True,
    **problem: Any,
) -> BenchResult:
    """Runs recipes, and the oracle, on planted problems.

    Args:
        shapes: of the models.
        seeds: one problem each.
        recipes: names of methods; by default all that train.
        changes: of the methods' settings.
        jobs: number of processes.
        progress: show a bar.
        problem: arguments of ``plant``, such as ``examples=100``.

    Returns:
        A row per run, with the oracle's accuracy; in the summary a row per recipe for all shapes together and for each
        alone: mean and worst F1, mean accuracy, mean of accuracy over the oracle's, the longest time.

    Raises:
        HeadEditError: there is no such shape or recipe, or a number is impossible.
    """
    chosen = names_of(recipes)
    rows = run_planted(shapes, seeds, chosen, [dict(problem)], changes, jobs, progress)
    oracles = {(row["shape"], row["seed"]): row["accuracy"] for row in rows if row["recipe"] == ORACLE}
    for row in rows:
        row["oracle"] = oracles[row["shape"], row["seed"]]
    groups = ["all", *shapes] if len(shapes) > 1 else list(shapes)
    summary = [
        _summary(group, recipe, found)
        for group in groups
        for (recipe,), found in grouped((r for r in rows if group in ("all", r["shape"])), "recipe").items()
    ]
    columns = [
        "recipe",
        "f1_offset",
        "f1_offset_min",
        "f1_scale",
        "f1_scale_min",
        "accuracy",
        "ratio",
        "gates",
        "parameters",
        "seconds_max",
    ]
    return BenchResult(
        title="Planted heads: which recipe finds them",
        settings=_settings(shapes, seeds, chosen, problem, changes),
        rows=rows,
        summary=summary,
        tables=[
            (
                f"{group}, {counted(seeds, 'seed')}",
                *table_of(columns, _with_unedited(r for r in summary if r["shape"] == group)),
            )
            for group in groups
        ],
    )


def names_of(recipes: Sequence[str] | None) -> list[str]:
    """The methods of ``bench_localise``: those that are named, or all that train, and at the end the oracle."""
    names = [name for name in methods() if name != UNEDITED] if recipes is None else recipes
    return [*(name for name in names if name != ORACLE), ORACLE]


def bench_curve(
    sizes: Sequence[int] = SIZES,
    recipes: Sequence[str] = CURVE_RECIPES,
    *,
    shapes: Sequence[str] = ("llama",),
    seeds: Sequence[int] = range(3),
    changes: Changes | None = None,
    jobs: int = 1,
    progress: bool = True,
    **problem: Any,
) -> BenchResult:
    """Measures accuracy and F1 by the number of training examples; smaller sets are part of the larger ones.

    Args:
        sizes: numbers of examples.
        recipes, shapes, seeds, changes, jobs, progress, problem: as for ``bench_localise``.

    Raises:
        HeadEditError: as for ``bench_localise``.
    """
    problems = [{**problem, "examples": size} for size in sizes]
    rows = run_planted(shapes, seeds, list(recipes), problems, changes, jobs, progress)
    summary = [
        {
            "examples": examples,
            "recipe": recipe,
            "runs": len(found),
            "accuracy": mean(row["accuracy"] for row in found),
            "accuracy_min": least(row["accuracy"] for row in found),
            "accuracy_max": max(row["accuracy"] for row in found),
            **_f1s(found),
            "unedited": mean(row["unedited"] for row in found),
            "parameters": whole_mean(row["parameters"] for row in found),
            "seconds_max": max(row["seconds"] for row in found),
        }
        for (examples, recipe), found in grouped(rows, "examples", "recipe").items()
    ]
    columns = ["recipe", "accuracy", "accuracy_min", "f1_offset", "f1_scale", "unedited", "parameters", "seconds_max"]
    return BenchResult(
        title="Planted heads: how many examples it takes",
        settings={**_settings(shapes, seeds, recipes, problem, changes), "sizes": list(sizes)},
        rows=rows,
        summary=summary,
        tables=[
            (f"{size} examples", *table_of(columns, [r for r in summary if r["examples"] == size])) for size in sizes
        ],
    )


def bench_nothing(
    shapes: Sequence[str] = SHAPES,
    seeds: Sequence[int] = range(3),
    recipes: Sequence[str] = NOTHING_RECIPES,
    *,
    changes: Changes | None = None,
    jobs: int = 1,
    progress: bool = True,
    **problem: Any,
) -> BenchResult:
    """Measures the test loss where nothing is planted: labels are the unedited model's own, so edits can only harm.

    Args:
        shapes, seeds, recipes, changes, jobs, progress, problem: as for ``bench_localise``.

    Raises:
        HeadEditError: as for ``bench_localise``; the oracle is among the recipes.
    """
    if ORACLE in recipes:
        raise HeadEditError("The oracle needs planted heads, and here none are planted.")
    rows = run_planted(shapes, seeds, list(recipes), [{**problem, "edits": 0}], changes, jobs, progress)
    summary = [
        {
            "shape": shape,
            "recipe": recipe,
            "runs": len(found),
            "loss": mean(row["loss"] for row in found),
            "accuracy": mean(row["accuracy"] for row in found),
            "gates": mean(row["gates"] for row in found),
            "parameters": whole_mean(row["parameters"] for row in found),
        }
        for (shape, recipe), found in grouped(rows, "shape", "recipe").items()
    ]
    columns = ["recipe", "seed", "loss", "accuracy", "gates", "parameters"]
    return BenchResult(
        title="Nothing planted: what editing costs in loss",
        settings=_settings(shapes, seeds, recipes, problem, changes),
        rows=rows,
        summary=summary,
        tables=[(shape, *table_of(columns, [r for r in rows if r["shape"] == shape])) for shape in shapes],
    )


def _summary(shape: str, recipe: str, rows: list[Row]) -> Row:
    return {
        "shape": shape,
        "recipe": recipe,
        "runs": len(rows),
        **_f1s(rows),
        "accuracy": mean(row["accuracy"] for row in rows),
        "ratio": mean(row["accuracy"] / row["oracle"] if row["oracle"] else None for row in rows),
        "oracle": mean(row["oracle"] for row in rows),
        "unedited": mean(row["unedited"] for row in rows),
        "gates": mean(row["gates"] for row in rows),
        "parameters": whole_mean(row["parameters"] for row in rows),
        "seconds_max": max(row["seconds"] for row in rows),
    }


def _with_unedited(summary: Iterable[Row]) -> list[Row]:
    rows = list(summary)
    return [*rows, {"recipe": UNEDITED, "accuracy": rows[0]["unedited"]}]


def _f1s(rows: Iterable[Row]) -> Row:
    found = list(rows)
    return {
        key + suffix: combine(row[key] for row in found)
        for key in ("f1_offset", "f1_scale")
        for suffix, combine in (("", mean), ("_min", least))
    }


def _settings(
    shapes: Sequence[str],
    seeds: Sequence[int],
    recipes: Sequence[str],
    problem: dict[str, Any],
    changes: Changes | None,
) -> dict[str, Any]:
    return {
        "shapes": list(shapes),
        "seeds": list(seeds),
        "recipes": list(recipes),
        "problem": problem,
        "changes": {name: dict(fields) for name, fields in (changes or {}).items()},
    }
