"""The section ``training`` of a run: any field of ``TrainingArguments``, of which recipes have some as their own."""

import argparse
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_type_hints

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.training.recipes import DEFAULT, Recipe, make_recipe
from headedit.training.recipes.rates import SHARE_OF_SCALES

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
    "early_stopping_patience": "recipe.patience",
    "early_stopping_threshold": "recipe.early_stopping_threshold",
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


_OF_FIT = {"output_dir": "output_dir=...", "seed": "seed=...", "resume_from_checkpoint": "resume=True"}
"""Fields of ``TrainingArguments`` that are arguments of ``headedit.fit``, and how to write them there."""


@cache
def argument_hints() -> dict[str, Any]:
    """The fields of ``transformers.TrainingArguments`` and their types."""
    from transformers import TrainingArguments

    return get_type_hints(TrainingArguments)


@cache
def _parser() -> dict[str, argparse.Action]:
    from transformers import HfArgumentParser, TrainingArguments

    return {action.dest: action for action in HfArgumentParser(TrainingArguments)._actions}


_DEFAULT = object()


def resolve(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[str, Recipe, dict[str, Any]]:
    """Resolves the sections ``recipe`` and ``training`` to the recipe's name, the recipe, and the other arguments.

    Raises:
        HeadEditError: a key is unknown or belongs elsewhere, a value is of a wrong type or out of range, or the same
            setting is given in both sections.
    """
    fields, rest = route_keys(recipe, training)
    name = _name(recipe)
    made = make_recipe(name, {key: value for key, value in fields.items() if key != "name"})
    checked = {key: _checked(key, value) for key, value in rest.items()}
    return name, made, {key: value for key, value in checked.items() if value is not _DEFAULT}


def route_keys(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Moves the keys of ``training`` that recipes have as their own to ``recipe``, under their names there.

    A ``learning_rate`` becomes the recipe's first learning rate of vectors; the recipe's other ones keep their default
    ratio to it.

    Raises:
        HeadEditError: the same setting is given in both sections, or a moved value is of a wrong type.
    """
    fields, rest = dict(recipe), {str(key).replace("-", "_"): value for key, value in training.items()}
    for key in [*RENAMED, "learning_rate"]:
        if key not in rest:
            continue
        value = _checked(key, rest.pop(key))
        if value is _DEFAULT:
            continue
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


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The ``arguments`` of ``headedit.fit``: fields of ``TrainingArguments``, without those that are left at None.

    Raises:
        HeadEditError: a name is unknown, or is an argument of ``fit``, or a value is of a wrong type.
    """
    found = {}
    for key, value in arguments.items():
        if key in _OF_FIT:
            raise HeadEditError(f"arguments: '{key}' is given to headedit.fit as {_OF_FIT[key]}, not here.")
        converted = _converted(key, value, "arguments")
        if converted is not _DEFAULT:
            found[key] = converted
    return found


def checked_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``training`` of a run without a recipe, without the fields that are left at None.

    Raises:
        HeadEditError: a key is unknown or belongs elsewhere, or a value is of a wrong type.
    """
    checked = {key: _checked(key, value) for key, value in training.items()}
    return {key: value for key, value in checked.items() if value is not _DEFAULT}


def _name(recipe: Mapping[str, Any]) -> str:
    return str(strict.convert(str, recipe.get("name", DEFAULT), "recipe: name"))


def _rates(recipe: Recipe, value: float) -> dict[str, float]:
    defaults = {name: getattr(recipe, name) for name in VECTOR_RATES if hasattr(recipe, name)}
    if None in defaults.values():  # rates that follow the number of values, of which those of scales are a share
        defaults = {"scale_lr": SHARE_OF_SCALES, "offset_lr": 1.0}
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
    if key in _ELSEWHERE:
        raise HeadEditError(f"training: '{key}' is given as {_ELSEWHERE[key]}, not here.")
    return _converted(key, value, "training")


def _converted(key: str, value: Any, where: str) -> Any:
    """A value as ``TrainingArguments`` takes it; ``_DEFAULT`` where it is null and the field knows no null.

    What is not of the field's type is read as transformers' own parser reads it from a command line: YAML's ``no`` is
    the word, ``"true"`` a switch, and ``fsdp: true`` a flag.
    """
    hints = argument_hints()
    if key in _SET_BY_HEADEDIT:
        raise HeadEditError(f"{where}: '{key}' is set by headedit; leave it out.")
    if key not in hints or key.startswith("_"):
        known = [name for name in hints if not name.startswith("_")]
        raise HeadEditError(f"{where}: unknown key {key!r}.{suggest(key, known)}")
    choices = None if key in RENAMED else _parser()[key].choices
    if choices is not None and isinstance(value, bool | str):
        word = str(getattr(value, "value", value)) if value is not False else "no"
        if word not in choices:
            raise HeadEditError(f"{where}: {key}: found {value!r}, expected one of its names.{suggest(word, choices)}")
        return word
    try:
        return strict.convert(hints[key], value, f"{where}: {key}")
    except HeadEditError:
        if value is None:
            return _DEFAULT
        if not isinstance(value, bool | int | float | str | list | tuple | Mapping):
            return value  # an object of transformers or accelerate, which only Python code can give
        read = _parsed(key, value)
        if read is _DEFAULT:
            raise
        return read


def _parsed(key: str, value: Any) -> Any:
    """What transformers' parser makes of a flag or a text; ``_DEFAULT`` where it refuses it."""
    action = _parser()[key]
    if isinstance(value, bool):
        return value if action.nargs == "?" and action.const is True else _DEFAULT
    if not isinstance(value, str) or action.type is None:
        return _DEFAULT
    read: Any = action.type
    try:
        return [read(word) for word in value.split()] if action.nargs in ("*", "+") else read(value)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return _DEFAULT
