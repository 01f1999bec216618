"""Reads ``run.json`` and checks the types of what it says, so that whatever shows it can rely on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.json import parse_json
from headedit.runs.files import RUN_FILE
from headedit.runs.selection import Selection
from headedit.runs.stability import Stability

MARGIN = 0.01
"""Share of the unedited model's loss by which edits may lie above it, as a few examples do not show so small a rise."""

_NUMBER = int | float | None
_KINDS: dict[str, Any] = {
    "recipe": str | None,
    "settings": dict[str, Any],
    "seed": int | None,
    "date": str | None,
    **dict.fromkeys(("train_examples", "valid_examples", "test_examples", "steps", "kept_step"), int | None),
    **dict.fromkeys(("best_eval_loss", "test_loss", "test_loss_base", "seconds"), _NUMBER),
    "held_out": dict[str, int | float | str] | None,
    "open": dict[str, dict[str, int]],
    "controls": dict[str, dict[str, _NUMBER]] | None,
    "stability": Stability | None,
    "selection": Selection | None,
}


def worse_than_base(held_out: Mapping[str, Any]) -> str | None:
    """Says that the edits were worse than the unedited model on held-out examples, by more than 1 %; None if not."""
    edited, base = held_out["edited"], held_out["base"]
    if edited <= (1 + MARGIN) * base:
        return None
    return (
        f"The edits were worse than the unedited model on {held_out['examples']} held-out examples, {edited:.4f} "
        f"against {base:.4f} nats per token, so they were taken out: the model is the unedited one. Lower the learning "
        "rates, or give more examples."
    )


def no_better_than_base(held_out: Mapping[str, Any]) -> str:
    """Says that the edits are kept although they are a little above the unedited model."""
    return (
        f"The edits are no better than the unedited model on {held_out['examples']} held-out examples: "
        f"{held_out['edited']:.4f} against {held_out['base']:.4f} nats per token."
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder.

    Raises:
        HeadEditError: there is none, or it is damaged.
    """
    file = folder / RUN_FILE
    try:
        found = parse_json(file.read_text(encoding="utf-8"), RUN_FILE)
    except (OSError, UnicodeDecodeError, HeadEditError) as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
    return check_record(found, file)


def check_record(found: Any, file: Path) -> dict[str, Any]:
    """The content of ``run.json``, with the types that a record has.

    Raises:
        HeadEditError: it is damaged; the message names the file.
    """
    if not isinstance(found, dict):
        raise HeadEditError(f"{file}: expected an object, found {type(found).__name__}; the file is damaged.")
    try:
        for key, kind in _KINDS.items():
            if key in found:
                strict.convert(kind, found[key], key)
    except HeadEditError as error:
        raise HeadEditError(f"{file}: the file is damaged: {error}") from None
    return found
