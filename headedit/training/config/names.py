"""The section ``training`` of a run: any field of ``TrainingArguments``, of which recipes have some as their own."""

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
"""Fields of ``TrainingArguments`` that every recipe has, and their names in recipes."""

VECTOR_RATES = ("vector_lr", "scale_lr", "offset_lr", "select_lr", "edit_lr")
"""Learning rates of vectors in recipes; ``learning_rate`` sets a recipe's first one, and the others in proportion."""

_SCHEDULES = {"reduce_lr_on_plateau": "adaptive"}
_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "report_to": "logging.report_to",
    "run_name": "logging.run_name",
    "logging_steps": "logging.every",
    "resume_from_checkpoint": "resume=True, or --resume",
}
_SET_BY_HEADEDIT = (
    "do_train",
    "do_eval",
    "do_predict",
    "remove_unused_columns",
    "label_names",
    "push_to_hub",
    "local_rank",
)


@cache
def argument_hints() -> dict[str, Any]:
    """The fields of ``transformers.TrainingArguments`` and their types."""
    from transformers import TrainingArguments

    return get_type_hints(TrainingArguments)


def resolve(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[str, Recipe, dict[str, Any]]:
    """Resolves the sections ``recipe`` and ``training`` to the recipe's name, the recipe, and the other arguments.

    Raises:
        HeadEditError: a key is unknown or belongs elsewhere, a value is of a wrong type or out of range, or the same
            setting is given in both sections.
    """
    fields, rest = route_keys(recipe, training)
    name = _name(recipe)
    made = make_recipe(name, {key: value for key, value in fields.items() if key != "name"})
    return name, made, {key: _checked(key, value) for key, value in rest.items()}


def route_keys(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Moves the keys of ``training`` that recipes have as their own to ``recipe``, under their names there.

    A ``learning_rate`` becomes the recipe's first learning rate of vectors; the recipe's other ones keep their default
    ratio to it.

    Raises:
        HeadEditError: the same setting is given in both sections, or a moved value is of a wrong type.
    """
    fields, rest = dict(recipe), dict(training)
    for key in [*RENAMED, "learning_rate"]:
        if key not in rest:
            continue
        value = _checked(key, rest.pop(key))
        defaults = make_recipe(_name(recipe), {})
        moved = _rates(defaults, value) if key == "learning_rate" else {RENAMED[key]: _recipe_value(key, value)}
        for name in moved:
            if name in recipe:
                raise HeadEditError(
                    f"training: '{key}' and recipe: '{name}' are the same setting, {value!r} and {recipe[name]!r}; "
                    "give one of the two."
                )
        fields |= moved
    return fields, rest


def recipe_fields_of(key: str) -> Iterable[str]:
    """The fields of recipes that a field of ``TrainingArguments`` sets; empty for most."""
    return VECTOR_RATES if key == "learning_rate" else [RENAMED[key]] if key in RENAMED else []


def _name(recipe: Mapping[str, Any]) -> str:
    return str(strict.convert(str, recipe.get("name", DEFAULT), "recipe: name"))


def _rates(recipe: Recipe, value: float) -> dict[str, float]:
    defaults = {name: getattr(recipe, name) for name in VECTOR_RATES if hasattr(recipe, name)}
    first = next(iter(defaults.values()))
    return {name: value * (rate / first) for name, rate in defaults.items()}


def _recipe_value(key: str, value: Any) -> Any:
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
    if key in _SET_BY_HEADEDIT:
        raise HeadEditError(f"training: '{key}' is set by headedit; leave it out.")
    if key not in hints:
        raise HeadEditError(f"training: unknown key {key!r}.{suggest(key, hints)}")
    return strict.convert(hints[key], value, f"training: {key}")
