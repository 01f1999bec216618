"""The table of heads in a report: a row per head, with its edit and, where it was measured, the evidence."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.interpret.head_map import HeadMap
from headedit.interpret.labels import LABELS, head_name
from headedit.runs.selection import Selection

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

Key = tuple[str, int, int]
"""Kind of site, layer, head."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of heads.

    Fields:
        key: as in the evidence and in the table of labels.
        form: ``head``, ``number``, ``signed``, ``text`` or ``tokens``.
        drawn: whether the map can show it.
        error: the key of its standard error, which is written behind it.
    """

    key: str
    form: str = "number"
    drawn: bool = True
    error: str = ""

    @property
    def label(self) -> str:
        """Its name on the page."""
        return LABELS[self.key].short

    @property
    def meaning(self) -> str:
        """A sentence on it."""
        return LABELS[self.key].meaning


COLUMNS = (
    Column(key="head", form="head", drawn=False),
    Column(key="kind", form="text", drawn=False),
    Column(key="edit", form="text"),
    Column(key="sure", form="text", drawn=False),
    Column(key="sure_offset"),
    Column(key="sure_scale"),
    Column(key="in_place_of", form="text", drawn=False),
    Column(key="effect", form="signed", error="effect_error"),
    Column(key="promotes", form="tokens", drawn=False),
    Column(key="suppresses", form="tokens", drawn=False),
    Column(key="gate_offset"),
    Column(key="gate_scale"),
    Column(key="offset_norm"),
    Column(key="scale_norm"),
    Column(key="contribution"),
    Column(key="share"),
    Column(key="attribution", form="signed"),
    Column(key="integrated", form="signed"),
    Column(key="patch_attribution", form="signed"),
    Column(key="patch_base", form="signed"),
    Column(key="patch_edited", form="signed"),
    Column(key="probe_accuracy"),
)


def head_rows(
    source: HeadMap, evidence: "pandas.DataFrame | None", selection: Selection | None = None
) -> dict[Key, dict[str, Any]]:
    """Collects the known values of every edited head, by the keys of ``COLUMNS``.

    Args:
        source: the edits.
        evidence: the frame that ``headedit.evidence`` returns.
        selection: how sure each gate is.

    Raises:
        HeadEditError: the evidence is of other edits.
    """
    rows = {key: row for kind in source.module.kinds() for key, row in _of_edits(source, kind).items()}
    if selection is not None:
        rows = {
            key: {**row, **found}
            for (key, row), found in zip(rows.items(), _sure(source, selection, rows), strict=True)
        }
    if evidence is None:
        return rows
    try:
        measured = {(row["kind"], row["layer"], row["head"]): row for row in evidence.to_dict("records")}
        same = measured.keys() == rows.keys() and all(row["open"] == rows[key]["open"] for key, row in measured.items())
    except (AttributeError, KeyError, TypeError):
        raise HeadEditError("evidence: expected the frame that headedit.evidence returns.") from None
    if not same:
        raise HeadEditError(
            "evidence: it was measured on other edits than those of the run: the heads, or the open ones, differ."
        )
    return {key: {**measured[key], **row} for key, row in rows.items()}


def columns_of(rows: Mapping[Key, Mapping[str, Any]]) -> list[Column]:
    """The columns that have a value in some row; the kind only where there are several."""
    several = len({kind for kind, _, _ in rows}) > 1
    held = [c for c in COLUMNS if any(not is_missing(row.get(c.key)) for row in rows.values())]
    return [column for column in held if several or column.key != "kind"]


def ordered(rows: Mapping[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """The rows with the edited heads first, those by the effect that was measured, the largest on top."""

    def place(key: Key) -> tuple[bool, float]:
        effect = rows[key].get("effect")
        return not rows[key]["open"], 0.0 if effect is None or is_missing(effect) else -effect

    return {key: rows[key] for key in sorted(rows, key=place)}


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


def _sure(source: HeadMap, selection: Selection, rows: Iterable[Key]) -> Iterator[dict[str, Any]]:
    """What stability selection says of each of these heads."""
    places: dict[tuple[int, int], Key] = {}
    numbers = {site.name: number for number, site in enumerate(source.module.sites)}
    for kind in source.module.kinds():
        for site, _, first in source.module.columns(kind):
            places |= {(numbers[site.name], head): (kind, site.layer, first + head) for head in range(site.heads)}
    vectors = {vector for edit in source.module for vector in edit.gated_vectors()}
    shares = {(places[gate.site, gate.head], gate.vector): share for gate, share in selection.proportions.items()}
    chosen = {(places[gate.site, gate.head], gate.vector) for gate in selection.chosen}
    others: dict[Key, list[str]] = {}
    for group in selection.groups:
        for index, _, head in group:
            names = [f"{head_name(*places[a, b][1:])} {vector}" for a, vector, b in group if (a, b) != (index, head)]
            others.setdefault(places[index, head], []).extend(names)
    for key in rows:
        yield {
            "sure": " and ".join(vector for vector in ("offset", "scale") if (key, vector) in chosen) or "no",
            **{f"sure_{vector}": shares.get((key, vector), 0.0) for vector in vectors},
            "in_place_of": ", ".join(others.get(key, [])) or None,
        }


def _gates(vector: str) -> Callable[[SiteEdit], Tensor | None]:
    return lambda edit: edit.gate_values().get(vector)


def _norms(vector: str) -> Callable[[SiteEdit], Tensor | None]:
    def of(edit: SiteEdit) -> Tensor | None:
        acting = edit.effective().get(vector)
        return None if acting is None else acting.float().norm(dim=-1)

    return of
