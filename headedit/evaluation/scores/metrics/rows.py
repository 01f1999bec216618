"""Checks the rows of a metric, a prediction and one or more references each, and imports the library it needs."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from headedit.errors import HeadEditError

_PACKAGES = {"rouge_score": "rouge-score"}


def check_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises an error for rows that no metric can score.

    Args:
        predictions: one text per row.
        references: one or more texts per row; rows may have different numbers of them.

    Raises:
        HeadEditError: there are no rows, another number of references than of predictions, a row without a
            reference, or something that is not text; the message names the row, counted from 1.
    """
    if not predictions:
        raise HeadEditError("There is nothing to score: the list of predictions is empty.")
    if len(predictions) != len(references):
        raise HeadEditError(f"Found {len(predictions)} predictions and references for {len(references)} rows.")
    for row, (prediction, accepted) in enumerate(zip(predictions, references, strict=True), start=1):
        if not isinstance(prediction, str):
            raise HeadEditError(f"Row {row}: the prediction is {type(prediction).__name__}, expected text.")
        if isinstance(accepted, str) or not isinstance(accepted, Sequence):
            kind = type(accepted).__name__
            raise HeadEditError(f"Row {row}: the references are {kind}, expected a list of texts.")
        if not accepted:
            raise HeadEditError(f"Row {row}: there is no reference to compare with.")
        for reference in accepted:
            if not isinstance(reference, str):
                raise HeadEditError(f"Row {row}: a reference is {type(reference).__name__}, expected text.")


def need(module: str, metric: str) -> Any:
    """Imports the module of an optional library.

    Raises:
        HeadEditError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        library = module.split(".")[0]
        raise HeadEditError(
            f"The metric '{metric}' needs {_PACKAGES.get(library, library)}: pip install 'headedit[eval]'"
        ) from None
