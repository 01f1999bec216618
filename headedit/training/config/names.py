"""What ``training`` may say: any field of ``TrainingArguments``; some of them recipes have under names of their own."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_type_hints

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.training.recipes import DEFAULT, Recipe, make_recipe

RENAMED = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "lr_scheduler_type": "lr_schedule",
    "weight_decay": "weight_decay",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
}
"""Fields of ``TrainingArguments`` that every recipe has, and what it calls them."""

VECTOR_RATES = ("vector_lr", "scale_lr", "offset_lr", "select_lr", "edit_lr")
"""What recipes call their learning rates of vectors; ``learning_rate`` sets the first that one has, and with it all."""

_SCHEDULES = {"reduce_lr_on_plateau": "adaptive"}
_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "report_to": "logging.report_to",
    "run_name": "logging.run_name",
    "logging_steps": "logging.every",
    "resume_from_checkpoint": "resume=True, or --resume",
}
_SETTLED = ("do_train", "do_eval", "do_predict", "remove_unused_columns", "label_names", "push_to_hub", "local_rank")


@cache
def argument_hints() -> dict[str, Any]:
    """The fields of ``transformers.TrainingArguments`` and their types."""
    from transformers import TrainingArguments

    return get_type_hints(TrainingArguments)


def settle(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[str, Recipe, dict[str, Any]]:
    """The sections ``recipe`` and ``training`` of a run as a recipe's name, the recipe, and the arguments left over.

    Raises:
        HeadEditError: a key is not known or has its place elsewhere, a value is impossible, or something is said
            twice, in both sections.
    """
    fields, rest = translated(recipe, training)
    name = _name(recipe)
    made = make_recipe(name, {key: value for key, value in fields.items() if key != "name"})
    return name, made, {key: _checked(key, value) for key, value in rest.items()}


def translated(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two sections, with what recipes have as their own moved over to ``recipe`` under its name there.

    A ``learning_rate`` becomes the recipe's first rate of vectors; its others keep the ratio to it that they have by
    default.

    Raises:
        HeadEditError: the same is said in both sections, or a moved value is of a wrong type.
    """
    fields, rest = dict(recipe), dict(training)
    for key in [*RENAMED, "learning_rate"]:
        if key not in rest:
            continue
        value = _checked(key, rest.pop(key))
        usual = make_recipe(_name(recipe), {})
        moved = _rates(usual, value) if key == "learning_rate" else {RENAMED[key]: _as_recipes_say(key, value)}
        for name in moved:
            if name in recipe:
                raise HeadEditError(
                    f"training: '{key}' and recipe: '{name}' say the same thing, {value!r} and {recipe[name]!r}; give "
                    "one of the two."
                )
        fields |= moved
    return fields, rest


def recipe_fields_of(key: str) -> Iterable[str]:
    """The fields of recipes that a field of ``TrainingArguments`` sets; none for most."""
    return VECTOR_RATES if key == "learning_rate" else [RENAMED[key]] if key in RENAMED else []


def _name(recipe: Mapping[str, Any]) -> str:
    return str(strict.convert(str, recipe.get("name", DEFAULT), "recipe: name"))


def _rates(recipe: Recipe, value: float) -> dict[str, float]:
    usual = {name: getattr(recipe, name) for name in VECTOR_RATES if hasattr(recipe, name)}
    first = next(iter(usual.values()))
    return {name: value * (rate / first) for name, rate in usual.items()}


def _as_recipes_say(key: str, value: Any) -> Any:
    if key == "lr_scheduler_type":
        return _SCHEDULES.get(value, value)
    if key == "num_train_epochs":
        if value != int(value):
            raise HeadEditError(f"training: num_train_epochs: found {value}, expected a whole number.")
        return int(value)
    return value


def _checked(key: str, value: Any) -> Any:
    hints = argument_hints()
    if key in _ELSEWHERE:
        raise HeadEditError(f"training: '{key}' is given as {_ELSEWHERE[key]}, not here.")
    if key in _SETTLED:
        raise HeadEditError(f"training: '{key}' is for headedit to set; leave it out.")
    if key not in hints:
        raise HeadEditError(f"training: unknown key {key!r}.{suggest(key, hints)}")
    return strict.convert(hints[key], value, f"training: {key}")
