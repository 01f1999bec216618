"""Default dropout of heads: where there are fewer labelled tokens than trained values, and little more.

A few examples are learnt by heart within a few hundred steps, by edits that overshoot. Where a pass leaves the edits of
some heads out (``HeadEdits.head_dropout``), no head can rely on the exact edits of the others. Many labelled tokens per
value determine the edits by themselves, and dropout would only blur them.
"""

from collections.abc import Sequence
from dataclasses import replace

from headedit.data.batches import IGNORED, Encoded
from headedit.edits import HeadEdits
from headedit.training.recipes.rates import count_values
from headedit.training.recipes.stage import Stage

LARGEST = 0.2
"""The default where there are at most as many labelled tokens as trained values."""

NONE_FROM = 2
"""Labelled tokens per trained value from which on the default is 0; it falls evenly between 1 and this."""

SHARE_IN_SEARCH = 0.5
"""Dropout in a search over that in a refit: a search draws its gates as well."""


def default_dropout(values: int, tokens: int) -> float:
    """The share of heads to leave out of a pass, for numbers of trained values and of labelled tokens."""
    return LARGEST * min(1.0, max(0.0, (NONE_FROM - tokens / max(1, values)) / (NONE_FROM - 1)))


def with_dropout(stage: Stage, edits: HeadEdits, rows: Sequence[Encoded]) -> Stage:
    """A stage whose dropout, where it is None, is the default, times ``dropout_factor``.

    Args:
        stage: the stage.
        edits: the handle, with the gates as the stage finds them.
        rows: the examples that the stage trains on.
    """
    share = stage.dropout
    if share is None:
        values = count_values(edits)
        share = default_dropout(values, _count_labels(rows, most=NONE_FROM * values))
    return replace(stage, dropout=stage.dropout_factor * share, dropout_factor=1.0)


def _count_labels(rows: Sequence[Encoded], most: int) -> int:
    """The number of labelled tokens, without reading further once there are ``most``."""
    count = 0
    for i in range(len(rows)):
        if count >= most:
            break
        count += sum(label != IGNORED for label in rows[i]["labels"][1:])
    return count
