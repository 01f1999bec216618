"""Arguments of ``headedit.fit`` and ``headedit.train``: what may be given, and what to write instead of the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy
from torch import nn
from torch.utils.data import DataLoader

from headedit.data import Data, Records
from headedit.edits import EditConfig, HeadEdits
from headedit.errors import HeadEditError, suggest
from headedit.hf.models import check_causal_lm, expect_model
from headedit.io.describe import describe
from headedit.training.config.names import argument_hints, recipe_fields_of
from headedit.training.recipes import RECIPES, Recipe

_USUAL = {"lr": "learning_rate", "num_epochs": "num_train_epochs", "n_epochs": "num_train_epochs"}
_OF_FIT = (
    "train",
    "valid",
    "output_dir",
    "recipe",
    "seed",
    "seeds",
    "controls",
    "bootstrap",
    "metric",
    "tokenizer",
    "max_length",
)
_OTHER_WORDS = {
    "data": "train",
    "train_data": "train",
    "train_dataset": "train",
    "eval_dataset": "valid",
    "validation": "valid",
    "output": "output_dir",
    "processing_class": "tokenizer",
    "max_seq_length": "max_length",
    "callbacks": "arguments",
    "args": "arguments",
    "resume_from_checkpoint": "resume",
}


def check_examples(given: Any, name: str, *, texts: bool = False) -> None:
    """Raises a HeadEditError where a set of examples is something else, such as the path of a file.

    Args:
        given: what was given.
        name: of the argument.
        texts: whether an example may be a text alone.
    """
    hint = "Give a list of (prompt, response) pairs or of records, or a datasets.Dataset."
    if isinstance(given, str | PathLike):
        hint = f"Read it first: headedit.read_records({str(given)!r}).pairs, or headedit.load_data for conversations."
        if name == "valid":
            hint += f" A folder for the run is output_dir={str(given)!r}."
    elif isinstance(given, Data):
        hint = "Give its splits: headedit.fit(edits, data.train, data.valid, ...)."
    elif isinstance(given, Records):
        hint = "Give its pairs: records.pairs."
    elif isinstance(given, DataLoader):
        hint = "Give its examples, loader.dataset; batches are made by batch_size=..."
    elif isinstance(given, Mapping):
        splits = [key for key in given if key in ("train", "validation", "valid", "test")]
        hint = (
            f"Give one split, such as data[{splits[0]!r}]."
            if splits
            else "Give a list of rows; datasets.Dataset.from_dict(data) makes rows of columns."
        )
    elif type(given).__name__ == "DataFrame":
        hint = "Give its rows: frame.to_dict('records')."
    elif isinstance(given, HeadEdits | nn.Module):
        hint = "The edits come first: headedit.fit(edits, train, valid, output_dir=...)."
    elif not texts and isinstance(given, Sequence) and len(given) and isinstance(given[0], str):
        hint = (
            "Give pairs of a prompt and its response: [('2 + 2 =', ' 4')]; a list of instruction and answer in turn is "
            "made into records by headedit.data.data_from_list(texts)."
        )
    elif _is_set(given):
        return
    raise HeadEditError(f"{name}: found {describe(given)}, expected examples. {hint}")


def _is_set(given: Any) -> bool:
    if hasattr(given, "convert_tokens_to_ids") or hasattr(given, "dtype"):  # a tokenizer, an array
        return False
    return isinstance(given, Iterable) or (hasattr(given, "__getitem__") and hasattr(given, "__len__"))


def check_settings(*, output_dir: Any, metric: Any, arguments: Any, switches: Mapping[str, Any]) -> None:
    """Raises a HeadEditError where an argument of ``fit`` is of a wrong type.

    Args:
        output_dir: the folder.
        metric: the function, or None.
        arguments: fields of ``TrainingArguments``, or None.
        switches: the arguments that are True or False, by name.
    """
    if not isinstance(output_dir, str | PathLike) or not str(output_dir):
        raise HeadEditError(
            f"output_dir: found {describe(output_dir)}, expected a folder for the edits and the history: "
            "headedit.fit(edits, train, valid, output_dir='out')."
        )
    if metric is not None and not callable(metric):
        raise HeadEditError(
            f"metric: found {describe(metric)}, expected a function without arguments that measures the model."
        )
    if arguments is not None and not isinstance(arguments, Mapping):
        raise HeadEditError(
            f"arguments: found {describe(arguments)}, expected a mapping of fields of TrainingArguments, such as "
            "{'gradient_accumulation_steps': 4}."
        )
    for name, value in switches.items():
        if not isinstance(value, bool | numpy.bool_):
            hint = " It is the run in output_dir that is resumed." if name == "resume" else ""
            raise HeadEditError(f"{name}: found {describe(value)}, expected True or False.{hint}")


def recipe_name(given: Any) -> str:
    """The name of a recipe.

    Raises:
        HeadEditError: it is not a text; whether there is such a recipe is checked by ``make_recipe``.
    """
    if isinstance(given, str):
        return given
    cls = given if isinstance(given, type) else type(given)
    found = next((name for name, recipe in RECIPES.items() if recipe is cls), None)
    hint = f" Give its name, {found!r}, and its fields as arguments of their own." if found else ""
    raise HeadEditError(f"recipe: found {describe(given)}, expected one of {', '.join(RECIPES)}.{hint}")


def check_fields(name: str, overrides: Mapping[str, Any]) -> None:
    """Raises a HeadEditError that has the right word for a field that a recipe does not have.

    Args:
        name: the recipe's; of one that there is not, nothing is checked.
        overrides: what is given for its fields, by their names.
    """
    recipe: type[Recipe] | None = RECIPES.get(name)
    if recipe is None:
        return
    known = [field.name for field in fields(recipe)]
    for key in overrides:
        if key in known:
            continue
        where = f"recipe {name}: unknown key '{key}'."
        usual = _USUAL.get(key, key)
        renamed = [field for field in recipe_fields_of(usual) if field in known]
        if key in _OTHER_WORDS:
            raise HeadEditError(f"{where} The argument of headedit.fit is {_OTHER_WORDS[key]}=...")
        if renamed:
            raise HeadEditError(f"{where} Its name in this recipe is {' and '.join(renamed)}.")
        if key in argument_hints():
            raise HeadEditError(f"{where} Fields of TrainingArguments are given as arguments={{'{key}': ...}}.")
        raise HeadEditError(f"{where}{suggest(key, [*known, *_OF_FIT])}")


def check_base(given: Any) -> None:
    """Raises a HeadEditError where ``base=`` of ``headedit.train`` is not a language model without edits."""
    if isinstance(given, HeadEdits):
        raise HeadEditError(
            "base: found the handle of edits. headedit.train attaches edits to a model without any; "
            "headedit.fit(edits, train, output_dir=...) trains edits that are attached."
        )
    check_causal_lm(expect_model(given), "Training")


def check_run(given: Any) -> None:
    """Raises a HeadEditError where the config of ``headedit.train`` is not one of a run."""
    if isinstance(given, HeadEdits | nn.Module):
        raise HeadEditError(
            f"config: found {describe(given)}, expected the config of a run. headedit.fit(edits, train, "
            "output_dir=...) trains edits on a model that is loaded; headedit.train loads everything as a config says."
        )
    if isinstance(given, EditConfig):
        raise HeadEditError("config: found an EditConfig, expected the config of a run, in which it is edits=...")
    if not isinstance(given, str | PathLike):
        raise HeadEditError(
            f"config: found {describe(given)}, expected a YAML file, the name of a config that comes with headedit, a "
            "mapping or a RunConfig."
        )
