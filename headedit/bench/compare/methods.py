"""One interface for all methods that are compared: our recipes, an ablation, the oracle, LoRA, and no edit at all."""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from headedit.bench.compare.lora import LoraSettings, best_lora
from headedit.edits import HeadEdits, attach
from headedit.edits.gate_set import GateIndex, freeze_gates, open_gates
from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.optional import import_optional
from headedit.training.fit import fit
from headedit.training.recipes import RECIPES, make_recipe

UNEDITED, ORACLE, NO_GATE, LORA = "unedited", "oracle", "no gate", "LoRA r 8"

_CHOOSING = ("localise", "jola", "lofit")
_EVERY_HEAD = {"ist": "ist", "rst": "rst", NO_GATE: "ungated"}
"""Methods that edit every head for good, and their recipes."""

Heads = dict[str, set[tuple[int, int]]]
"""For ``offset`` and ``scale`` the heads, as (site, head), that have an open gate on one."""

Changes = Mapping[str, Mapping[str, Any]]
"""By method: fields of its recipe, or of ``LoraSettings``, that differ from their defaults."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method is given.

    Fields:
        fresh: makes the unedited model; called for each model that is trained.
        train: examples, in any form that ``fit`` takes.
        score: of a trained model on the test examples; higher is better.
        tokenizer: for examples that are texts.
        seed: of everything random in the training.
        truth: the planted heads, where there are some.
    """

    fresh: Callable[[], nn.Module]
    train: Sequence[Any]
    score: Callable[[nn.Module], float]
    tokenizer: Any = None
    seed: int = 0
    truth: Heads | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method made of a problem.

    Fields:
        model: trained, in eval mode, with its edits or adapter on it.
        score: on the test examples.
        parameters: number in effect at the end: for edits head_dim × open vectors, for LoRA the trainable ones.
        heads: heads with an open gate; None for LoRA.
        gates: open gates; None for LoRA.
        found: the heads that were chosen; None where nothing chooses.
        seconds: of the training; for LoRA of its best run.
        details: learning rate and runs of LoRA.
    """

    model: nn.Module
    score: float
    parameters: int
    heads: int | None
    gates: int | None
    found: Heads | None
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Problem, Mapping[str, Any]], Outcome]
"""Takes the problem, and fields of the recipe, or of ``LoraSettings``, that differ from their defaults."""


def methods(*, planted: bool = False) -> dict[str, Method]:
    """Every method by name: ``unedited``, the recipes that choose heads, those that edit every head, ``LoRA r 8``.

    Args:
        planted: also ``oracle``, which needs planted heads.
    """
    found: dict[str, Method] = {UNEDITED: _unedited}
    found |= {name: _of_recipe(name) for name in _CHOOSING}
    found |= {name: _of_recipe(recipe, chooses=False) for name, recipe in _EVERY_HEAD.items() if recipe in RECIPES}
    found[LORA] = _lora
    return {**found, ORACLE: _oracle} if planted else found


def method(name: str, *, planted: bool = False) -> Method:
    """The method of a name.

    Raises:
        HeadEditError: there is none.
    """
    known = methods(planted=planted)
    if name not in known:
        raise HeadEditError(f"There is no method '{name}'.{suggest(name, known, title='Methods')}")
    return known[name]


def check_changes(names: Sequence[str], changes: Changes | None, *, planted: bool) -> None:
    """Checks that every method can run with its settings, before any work is done.

    Raises:
        HeadEditError: there is no such method, its settings are impossible, or peft is not installed for LoRA.
    """
    for name in dict.fromkeys([*names, *(changes or {})]):
        settings = dict((changes or {}).get(name, {}))
        method(name, planted=planted)
        if name == LORA:
            import_optional("peft", "LoRA")
            strict.build(LoraSettings, settings, LORA)
        elif name != UNEDITED:
            make_recipe({**_EVERY_HEAD, ORACLE: "refit"}.get(name, name), settings)


def heads_by_vector(gates: Iterable[GateIndex]) -> Heads:
    """The heads, as (site, head), of the gates on offsets and of those on scales."""
    return {vector: {(g.site, g.head) for g in gates if g.vector == vector} for vector in ("offset", "scale")}


def _unedited(problem: Problem, changes: Mapping[str, Any]) -> Outcome:
    model = problem.fresh().eval()
    return Outcome(model=model, score=problem.score(model), parameters=0, heads=0, gates=0, found=None, seconds=0.0)


def _of_recipe(recipe: str, *, chooses: bool = True) -> Method:
    def run(problem: Problem, changes: Mapping[str, Any]) -> Outcome:
        return _fitted(problem, attach(problem.fresh()), recipe, changes, chooses)

    return run


def _oracle(problem: Problem, changes: Mapping[str, Any]) -> Outcome:
    if problem.truth is None:
        raise HeadEditError("The oracle needs planted heads, and here none are planted.")
    edits = attach(problem.fresh())
    planted = [GateIndex(site, vector, head) for vector, heads in problem.truth.items() for site, head in heads]
    freeze_gates(edits.module, planted)
    return _fitted(problem, edits, "refit", changes, chooses=False)


def _fitted(problem: Problem, edits: HeadEdits, recipe: str, changes: Mapping[str, Any], chooses: bool) -> Outcome:
    batch = make_recipe(recipe, dict(changes)).batch_size
    fields = {"batch_size": min(batch, len(problem.train)), **changes}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            edits,
            problem.train,
            tokenizer=problem.tokenizer,
            output_dir=folder,
            recipe=recipe,
            seed=problem.seed,
            progress=False,
            **fields,
        )
    seconds = time.perf_counter() - started
    model = edits.model.eval()
    opened = edits.count_open()
    return Outcome(
        model=model,
        score=problem.score(model),
        parameters=edits.count_effective_parameters(),
        heads=opened["any"][0],
        gates=opened["offset"][0] + opened["scale"][0],
        found=heads_by_vector(open_gates(edits.module)) if chooses else None,
        seconds=seconds,
    )


def _lora(problem: Problem, changes: Mapping[str, Any]) -> Outcome:
    settings: LoraSettings = strict.build(LoraSettings, dict(changes), LORA)
    best = best_lora(
        problem.fresh,
        problem.train,
        problem.score,
        tokenizer=problem.tokenizer,
        seed=problem.seed,
        settings=settings,
    )
    return Outcome(
        model=best.model,
        score=best.score,
        parameters=best.parameters,
        heads=None,
        gates=None,
        found=None,
        seconds=best.seconds,
        details={"learning_rate": best.learning_rate, "tried": best.tried},
    )
