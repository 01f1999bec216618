"""Agreement of the signs of an important head: rank correlations, and how well a sign separates chosen heads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headedit.edits.arguments import as_list
from headedit.errors import HeadEditError, suggest
from headedit.io.describe import describe

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

SIGNS = ("gate", "contribution", "attribution", "integrated", "effect")
"""Columns of the evidence that should rank heads alike if open gates mark important heads."""


def agreement(
    evidence: "pandas.DataFrame", columns: Sequence[str] = SIGNS, *, heads: str = "open"
) -> "pandas.DataFrame":
    """Computes Spearman's rank correlation of every two columns.

    Args:
        evidence: the frame that ``headedit.evidence`` returns.
        columns: which columns.
        heads: ``open``: only heads with an open gate; the others have an effect of exactly 0, which agrees with a
            closed gate by construction. ``all``: those too.

    Returns:
        A square frame of numbers from −1 to 1; NaN where a column does not vary, or there are fewer than 3 heads.

    Raises:
        HeadEditError: there is no such column, one holds no numbers, or ``heads`` is neither of the two.
    """
    if heads not in ("open", "all"):
        raise HeadEditError(f"heads: found {heads!r}, expected 'open' or 'all'.")
    chosen = as_list(columns, "columns", "a list of columns of the evidence")
    for column in chosen:
        check_column(evidence, column)
    rows = evidence[evidence["open"]] if heads == "open" else evidence
    return rows[chosen].astype(float).corr(method="spearman", min_periods=3)


def separation(evidence: "pandas.DataFrame", column: str = "effect", chosen: Sequence[bool] | None = None) -> float:
    """Measures how well a column tells chosen heads from others: the area under the ROC curve.

    It is the share of pairs of a chosen head and another in which the chosen one has the higher value; ties count half.

    Args:
        evidence: the frame that ``headedit.evidence`` returns.
        column: the column.
        chosen: for each row whether the head is chosen; by default the open ones.

    Returns:
        A number from 0 to 1, 0.5 by chance; NaN if all heads are chosen, or none.

    Raises:
        HeadEditError: there is no such column, it holds no numbers, or ``chosen`` does not have one value per row.
    """
    check_column(evidence, column)
    given = evidence["open"].tolist() if chosen is None else as_list(chosen, "chosen", "a truth value for each head")
    flags = [bool(flag) for flag in given]
    if len(flags) != len(evidence):
        raise HeadEditError(f"chosen: found {len(flags)} values for {len(evidence)} heads; give one for each.")
    values = evidence[column].astype(float).tolist()
    pairs = [(value, flag) for value, flag in zip(values, flags, strict=True) if value == value]
    inside = [value for value, flag in pairs if flag]
    outside = [value for value, flag in pairs if not flag]
    if not inside or not outside:
        return float("nan")
    won = sum(1.0 if a > b else 0.5 * (a == b) for a in inside for b in outside)
    return float(won) / (len(inside) * len(outside))


def check_column(evidence: "pandas.DataFrame", column: str) -> None:
    """Raises a HeadEditError unless this is a frame of evidence with such a column, and numbers in it."""
    if not hasattr(evidence, "columns"):
        raise HeadEditError(f"evidence: found {describe(evidence)}, expected the frame that headedit.evidence returns.")
    if column not in evidence.columns:
        raise HeadEditError(f"The evidence has no column '{column}'.{suggest(column, map(str, evidence.columns))}")
    try:
        evidence[column].astype(float)
    except (TypeError, ValueError):
        raise HeadEditError(f"The column '{column}' of the evidence holds no numbers.") from None
