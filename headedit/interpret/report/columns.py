"""The heads of a report: a row each, of what the edits hold and, where it was measured, of the evidence."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.interpret.head_map import HeadMap

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

Key = tuple[str, int, int]
"""Kind of site, layer, head."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of heads.

    Fields:
        key: as in the evidence.
        label: its name on the page.
        meaning: a sentence on it.
        form: ``whole``, ``number``, ``signed``, ``text`` or ``tokens``.
        drawn: whether the map can show it.
    """

    key: str
    label: str
    meaning: str
    form: str = "number"
    drawn: bool = True


COLUMNS = (
    Column(key="layer", label="layer", meaning="Index of the layer.", form="whole", drawn=False),
    Column(key="head", label="head", meaning="Which head of the layer, from 0.", form="whole", drawn=False),
    Column(key="kind", label="kind", meaning="Kind of the head's site.", form="text", drawn=False),
    Column(key="edit", label="edit", meaning="Which vectors have an open gate.", form="text"),
    Column(
        key="effect",
        label="effect",
        meaning="Rise of the loss, in nats a token, when this head's edit alone is switched off.",
        form="signed",
    ),
    Column(
        key="effect_error",
        label="± effect",
        meaning="Standard error of the effect over the examples.",
        drawn=False,
    ),
    Column(
        key="promotes", label="promotes", meaning="Tokens that the edit makes likelier.", form="tokens", drawn=False
    ),
    Column(
        key="suppresses",
        label="suppresses",
        meaning="Tokens that the edit makes less likely.",
        form="tokens",
        drawn=False,
    ),
    Column(key="gate_offset", label="offset gate", meaning="From 0, closed, to 1, open, in eval mode."),
    Column(key="gate_scale", label="scale gate", meaning="From 0, closed, to 1, open, in eval mode."),
    Column(key="offset_norm", label="‖g·a‖", meaning="Length of what is added to the head's output."),
    Column(key="scale_norm", label="‖g·m‖", meaning="Length of what is added to the factor of 1 on it."),
    Column(key="contribution", label="contribution", meaning="Size of what the edit adds to the head's output."),
    Column(key="share", label="share", meaning="That, over the size of the head's own output."),
    Column(
        key="attribution",
        label="attribution",
        meaning="The effect, estimated for all heads at once by one gradient.",
        form="signed",
    ),
    Column(
        key="integrated",
        label="integrated",
        meaning="The effect, estimated for all heads at once by integrated gradients.",
        form="signed",
    ),
    Column(
        key="patch_attribution",
        label="patch estimate",
        meaning="Rise of the loss with the base model's head put in, estimated by one gradient.",
        form="signed",
    ),
    Column(
        key="patch_base",
        label="patch into base",
        meaning="Change of the base model's loss with the edited head put in.",
        form="signed",
    ),
    Column(
        key="patch_edited",
        label="patch into edited",
        meaning="Change of the edited model's loss with the base model's head put in.",
        form="signed",
    ),
    Column(
        key="probe_accuracy",
        label="probe accuracy",
        meaning="Held-out accuracy of a linear probe on the head's output in the base model.",
    ),
)


def head_rows(source: HeadMap, evidence: "pandas.DataFrame | None") -> dict[Key, dict[str, Any]]:
    """For every edited head its values by the keys of ``COLUMNS``, as far as they are known.

    Args:
        source: the edits.
        evidence: the frame of ``headedit.interpret.evidence.table``.

    Raises:
        HeadEditError: the evidence is of other edits.
    """
    rows = {key: row for kind in source.module.kinds() for key, row in _of_edits(source, kind).items()}
    if evidence is None:
        return rows
    try:
        measured = {(row["kind"], row["layer"], row["head"]): row for row in evidence.to_dict("records")}
        same = measured.keys() == rows.keys() and all(row["open"] == rows[key]["open"] for key, row in measured.items())
    except (AttributeError, KeyError, TypeError):
        raise HeadEditError("evidence: expected the frame that headedit.interpret.evidence.table returns.") from None
    if not same:
        raise HeadEditError("evidence: is of other edits than those of the run: their heads, or the open ones, differ.")
    return {key: {**measured[key], **row} for key, row in rows.items()}


def columns_of(rows: Mapping[Key, Mapping[str, Any]]) -> list[Column]:
    """The columns that hold something; the kind only where there are several."""
    several = len({kind for kind, _, _ in rows}) > 1
    held = [c for c in COLUMNS if any(not is_missing(row.get(c.key)) for row in rows.values())]
    return [column for column in held if several or column.key != "kind"]


def is_missing(value: Any) -> bool:
    """Whether there is no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _of_edits(source: HeadMap, kind: str) -> dict[Key, dict[str, Any]]:
    grids: dict[str, Tensor] = {}
    for vector in ("offset", "scale"):
        grids[f"gate_{vector}"] = source.grid(kind, _gates(vector))
        grids[f"{vector}_norm"] = source.grid(kind, _norms(vector))
    opened = {vector: source.open_heads(kind, vector).tolist() for vector in ("offset", "scale")}
    values = {key: grid.tolist() for key, grid in grids.items()}
    rows = {}
    for layer, head in source.has_head(kind).nonzero().tolist():
        there = [vector for vector, grid in opened.items() if grid[layer][head]]
        rows[kind, layer, head] = {
            "kind": kind,
            "layer": layer,
            "head": head,
            "open": bool(there),
            "edit": " and ".join(there) or "none",
            **{key: grid[layer][head] for key, grid in values.items()},
        }
    return rows


def _gates(vector: str) -> Callable[[SiteEdit], Tensor | None]:
    return lambda edit: edit.gate_values().get(vector)


def _norms(vector: str) -> Callable[[SiteEdit], Tensor | None]:
    def of(edit: SiteEdit) -> Tensor | None:
        acting = edit.effective().get(vector)
        return None if acting is None else acting.float().norm(dim=-1)

    return of
