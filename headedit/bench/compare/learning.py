"""Every method of a comparison by name, and what each makes of some examples."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import set_seed

from headedit.bench.compare.methods import Heads, heads_by_vector
from headedit.bench.compare.peers.adapters import PEERS
from headedit.bench.compare.peers.training import Budget, train_peer
from headedit.bench.compare.prompting import with_shots
from headedit.data.batches import Encoded, PadRight
from headedit.data.encoding import encode
from headedit.data.losses import example_losses
from headedit.data.rows import Vocabulary
from headedit.data.tokens import text_ids
from headedit.edits import EditConfig, attach
from headedit.edits.files.format import TENSOR_FILE
from headedit.edits.gate_set import open_gates
from headedit.errors import HeadEditError, suggest
from headedit.evaluation.tasks.task import Task
from headedit.io import strict
from headedit.training.fit import fit
from headedit.training.recipes import make_recipe

LORA = "lora"
"""The peer that others are tested against."""

ZERO_SHOT, FEW_SHOT = "zero-shot", "few-shot"
_RATES, _SHOTS = "rates", 8
_LENGTHS = ("epochs", "search_epochs")  # of a recipe: passes over the examples in each stage


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """A recipe with the vectors that it may edit."""

    name: str
    vectors: str = "both"
    chooses: bool = False


RECIPES: dict[str, _Recipe] = {
    "localise": _Recipe(name="localise", chooses=True),
    "jola": _Recipe(name="jola", chooses=True),
    "no gate": _Recipe(name="ungated"),
    "offset only": _Recipe(name="ungated", vectors="offset"),
    "scale only": _Recipe(name="ungated", vectors="scale"),
    "lofit": _Recipe(name="lofit", chooses=True),
    "ist": _Recipe(name="ist"),
    "rst": _Recipe(name="rst"),
}
"""Our recipes and ablations, by the name in a comparison's file."""

METHODS = (ZERO_SHOT, FEW_SHOT, *RECIPES, *PEERS)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a method is given.

    Fields:
        fresh: loads the base model.
        tokenizer: the model's.
        task: of the evaluation.
        examples: (prompt, response) pairs to learn from.
        seed: of everything random.
        epochs, batch_size: the budget of every method that trains.
        validation: share of the examples by which a learning rate is chosen.
        max_length: longest example in tokens.
        folder: for what is saved.
    """

    fresh: Callable[[], nn.Module]
    tokenizer: Any
    task: Task
    examples: Sequence[tuple[str, str]]
    seed: int
    epochs: int
    batch_size: int
    validation: float
    max_length: int | None
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a method made of a lesson.

    Fields:
        model: in eval mode, with what was learned on it.
        task: of the evaluation, with examples in its prompt for few-shot prompting.
        seconds: of all training, every tried learning rate included; without loading the model.
        parameters: numbers that are learned and in effect.
        heads: heads with an open gate; None for peers and for prompting.
        found: the heads that were chosen; None where nothing chooses.
        total_heads: heads that could be chosen; None as for ``heads``.
        disk_bytes: of what is saved.
        learning_rate: the one that was chosen, where several were tried.
        tried: validation loss in nats per token, and seconds, of each learning rate.
        notes: what else should be known.
    """

    model: nn.Module
    task: Task
    seconds: float = 0.0
    parameters: int = 0
    heads: int | None = None
    found: Heads | None = None
    total_heads: int | None = None
    disk_bytes: int = 0
    learning_rate: float | None = None
    tried: list[dict[str, float]] = field(default_factory=list)
    notes: str = ""


def check_method(name: str, settings: Mapping[str, Any]) -> None:
    """Raises a HeadEditError where there is no such method, or its settings are impossible."""
    if name not in METHODS:
        raise HeadEditError(f"methods: there is no method '{name}'.{suggest(name, METHODS, title='Methods')}")
    given = dict(settings)
    if name in RECIPES:
        make_recipe(RECIPES[name].name, given)
        return
    if name in PEERS:
        rates = given.pop(_RATES, list(PEERS[name].rates))
        if not (isinstance(rates, list) and rates and all(isinstance(r, int | float) and r > 0 for r in rates)):
            raise HeadEditError(f"methods: {name}: rates: found {rates!r}, expected a list of learning rates above 0.")
        _check_fields(name, given, PEERS[name].settings)
        return
    _check_fields(name, given, {"shots": _SHOTS} if name == FEW_SHOT else {})


def _check_fields(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in known:
            possible = [*known, _RATES] if name in PEERS else list(known)
            hint = suggest(key, possible) if possible else " It has no settings."
            raise HeadEditError(f"methods: {name}: unknown key '{key}'.{hint}")
        number = strict.convert(int, value, f"methods: {name}: {key}")
        if number < 1:
            raise HeadEditError(f"methods: {name}: {key}: found {number}, expected 1 or more.")


def learn(name: str, lesson: Lesson, settings: Mapping[str, Any], say: Callable[[str], None]) -> Learned:
    """Lets a method learn.

    Args:
        name: of the method.
        lesson: what it is given.
        settings: its own settings.
        say: called with a line about what is done.

    Raises:
        HeadEditError: the method cannot be used on this model, or its training failed.
    """
    if name == ZERO_SHOT:
        return Learned(model=lesson.fresh().eval(), task=lesson.task)
    if name == FEW_SHOT:
        return _few_shot(lesson, int(settings.get("shots", _SHOTS)))
    return _recipe(name, lesson, settings) if name in RECIPES else _peer(name, lesson, settings, say)


def _few_shot(lesson: Lesson, shots: int) -> Learned:
    model = lesson.fresh().eval()
    longest = max(len(text_ids(lesson.tokenizer, prompt + response)) for prompt, response in lesson.examples)
    room = 2 * longest + (lesson.task.max_new_tokens or 0)
    task, used = with_shots(lesson.task, lesson.examples[:shots], model, lesson.tokenizer, room)
    return Learned(model=model, task=task, notes=f"{used} examples in the prompt")


def _recipe(name: str, lesson: Lesson, settings: Mapping[str, Any]) -> Learned:
    chosen = RECIPES[name]
    edits = attach(lesson.fresh(), config=EditConfig(vectors=chosen.vectors))  # type: ignore[arg-type]
    fields = {name: lesson.epochs for name in _LENGTHS if hasattr(make_recipe(chosen.name, {}), name)}
    fields["batch_size"] = min(lesson.batch_size, len(lesson.examples))
    started = time.perf_counter()
    run = fit(
        edits,
        list(lesson.examples),
        tokenizer=lesson.tokenizer,
        max_length=lesson.max_length,
        output_dir=lesson.folder,
        recipe=chosen.name,
        seed=lesson.seed,
        overwrite=True,
        progress=False,
        **{**fields, **settings},
    )
    seconds = time.perf_counter() - started
    opened = edits.count_open()
    held_out = run.record.get("held_out")
    worse = held_out is not None and held_out["edited"] > held_out["base"]
    return Learned(
        model=edits.model.eval(),
        task=lesson.task,
        seconds=seconds,
        parameters=edits.count_effective_parameters(),
        heads=opened["any"][0],
        found=heads_by_vector(open_gates(edits.module)) if chosen.chooses else None,
        total_heads=opened["any"][1],
        disk_bytes=(lesson.folder / TENSOR_FILE).stat().st_size,
        notes="worse than the base on held-out examples" if worse else "",
    )


def _peer(name: str, lesson: Lesson, settings: Mapping[str, Any], say: Callable[[str], None]) -> Learned:
    """Tries every learning rate on a part of the examples, and trains on all of them with the best one."""
    own = {**PEERS[name].settings, **settings}
    rates = [float(rate) for rate in own.pop(_RATES, PEERS[name].rates)]
    rows = encode(lesson.examples, lesson.tokenizer, max_length=lesson.max_length, name="training", progress=False)
    tried: list[dict[str, float]] = []
    if len(rates) > 1:
        held_out, rest = _split(rows, lesson.validation, lesson.seed)
        for rate in rates:
            model, seconds = _trained(name, own, lesson, rest, rate)
            loss = example_losses(model, held_out, PadRight(_padding(lesson, model)), lesson.batch_size).mean().item()
            tried.append({"learning_rate": rate, "validation_loss": loss, "seconds": round(seconds, 2)})
            say(f"learning rate {rate:g}: validation loss {loss:.4f} nats per token, {seconds:.0f} s")
            del model
        finite = [row for row in tried if math.isfinite(row["validation_loss"])]
        if not finite:
            raise HeadEditError(
                f"{name}: the loss is NaN or infinite at every learning rate of {rates}; try lower ones."
            )
        rates = [min(finite, key=lambda row: row["validation_loss"])["learning_rate"]]
    model, seconds = _trained(name, own, lesson, rows, rates[0])
    learned = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    lesson.folder.mkdir(parents=True, exist_ok=True)
    file = lesson.folder / "peer.safetensors"
    save_file(learned, file)
    return Learned(
        model=model,
        task=lesson.task,
        seconds=seconds + sum(row["seconds"] for row in tried),
        parameters=sum(tensor.numel() for tensor in learned.values()),
        disk_bytes=file.stat().st_size,
        learning_rate=rates[0],
        tried=tried,
    )


def _trained(
    name: str, own: Mapping[str, Any], lesson: Lesson, rows: Sequence[Encoded], rate: float
) -> tuple[nn.Module, float]:
    model = lesson.fresh()
    started = time.perf_counter()
    set_seed(lesson.seed)
    adapted = PEERS[name].adapt(model, **own)
    budget, pad = Budget(epochs=lesson.epochs, batch_size=lesson.batch_size), _padding(lesson, model)
    try:
        trained = train_peer(adapted, rows, budget, learning_rate=rate, seed=lesson.seed, pad_token_id=pad)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # of a library that does not fit the model
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise HeadEditError(f"{name}: a {type(model).__name__} cannot be trained with it ({line}).") from error
    return trained, time.perf_counter() - started


def _padding(lesson: Lesson, model: nn.Module) -> int:
    return Vocabulary.of(model).padding(lesson.tokenizer)


def _split(rows: Sequence[Encoded], share: float, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Held-out rows, at least one, and the others, drawn by the seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(len(rows) - 1, max(1, round(share * len(rows))))
    return [rows[i] for i in order[:count]], [rows[i] for i in order[count:]]
