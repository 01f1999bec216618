"""Checks a comparison before it is started: its model, the records of its tasks and its folder, without any weight."""

import functools
from collections.abc import Callable
from typing import Any

from headedit.bench.compare.cells import Cell, examples_of, task_of
from headedit.bench.compare.config import CompareConfig
from headedit.bench.compare.learning import RECIPES
from headedit.errors import HeadEditError
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.records import load_examples, load_rows
from headedit.evaluation.tasks.task import Task
from headedit.hf.weights import check_weights
from headedit.io.files import check_writable
from headedit.training.config import ModelConfig
from headedit.training.dry_run import check_model


def problems(config: CompareConfig) -> list[str]:
    """Why a comparison cannot be started, a sentence for each reason; empty if nothing speaks against it.

    The model's config and tokenizer are loaded, its weights are looked for, edits are attached to the model without
    weights where a recipe is compared, and the training and test records of every task are read.
    """
    found: list[str] = []
    _checked(found, functools.partial(check_writable, config.output))
    recipes = not config.settings or any(name in RECIPES for name in config.settings)
    tokenizer = _checked(found, functools.partial(check_model if recipes else _check_plain, config.model))
    if tokenizer is None:  # the records are rendered by it
        return found
    for name, compared in config.tasks.items():
        cell = Cell(config=config, task=name, size=max(config.sizes), seed=config.seeds[0], method="")
        _checked(found, functools.partial(examples_of, cell, tokenizer))
        _checked(found, functools.partial(_test_examples, task_of(compared, name), tokenizer))
    return list(dict.fromkeys(found))


def _test_examples(task: Task, tokenizer: Any) -> list[Example]:
    return load_examples(task, load_rows(task, None), tokenizer, limit=None, seed=0, skip_broken=False)[0]


def _checked(found: list[str], check: Callable[[], Any]) -> Any | None:
    """What a check returns; where it fails, None, and the reason is added."""
    try:
        return check()
    except HeadEditError as error:
        found.append(str(error))
        return None


def _check_plain(model: ModelConfig) -> Any:
    model.load_config()
    check_weights(model.source)
    return model.load_tokenizer()
