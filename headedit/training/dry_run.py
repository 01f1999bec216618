"""Checks a run before it is started: its model, its data and its folder, without any weight."""

import dataclasses
from os import PathLike
from typing import Any

from torch import nn

from headedit.edits import EditConfig, attach
from headedit.errors import HeadEditError
from headedit.hf.building import build_without_weights
from headedit.hf.weights import check_weights
from headedit.io.files import check_writable
from headedit.specs import Spec
from headedit.training.config import ModelConfig, RunConfig
from headedit.training.train import prepare


def check_model(
    model: ModelConfig, edits: EditConfig | None = None, spec: "str | PathLike[str] | Spec | None" = None
) -> Any:
    """Loads the config and the tokenizer of a model, looks for its weights, and attaches edits to it without them.

    Args:
        model: the model.
        edits: the shape of the edits; by default every head.
        spec: where the heads are; by default found by the model type.

    Returns:
        The tokenizer.

    Raises:
        HeadEditError: one of these is not possible.
    """
    config, tokenizer = model.load_config(), model.load_tokenizer()
    check_weights(model.source)
    built: nn.Module = build_without_weights(config)
    attach(built, spec, edits)
    return tokenizer


class Checked:
    """Checks runs, each model and each data set once."""

    def __init__(self) -> None:
        self._problems: dict[str, str | None] = {}

    def problem(self, run: RunConfig) -> str | None:
        """Why a run cannot be started; None if nothing speaks against it."""
        assert run.output is not None
        data = dataclasses.replace(run.data, seed=0)
        parts = (
            (f"{run.model} {run.edits} {run.spec}", lambda: check_model(run.model, run.edits, run.spec)),
            (f"{run.model.source} {data}", lambda: prepare(run, progress=False)),
            (run.output, lambda: check_writable(run.output or "")),
        )
        for key, check in parts:
            if key not in self._problems:
                self._problems[key] = None
                try:
                    check()
                except HeadEditError as error:
                    self._problems[key] = str(error)
            if self._problems[key] is not None:
                return self._problems[key]
        return None
