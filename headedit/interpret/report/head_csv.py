"""The table of heads as CSV, with every digit."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from headedit.interpret.labels import head_name
from headedit.interpret.report.columns import Column, Key, is_missing


def head_csv(rows: Mapping[Key, Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A line per head, in the order of the rows: its name, then layer, head and all columns by their keys.

    Numbers have nine digits; a value that is missing is empty; tokens are a JSON list, so that none of them can be
    taken for a formula.
    """
    keys = ["layer", "head"]
    for column in columns:
        keys += [key for key in (column.key, column.error) if key and column.form != "head"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *keys])
    for (_, layer, head), row in rows.items():
        writer.writerow([head_name(layer, head), *(_text(row.get(key)) for key in keys)])
    return text.getvalue()


def _text(value: Any) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, list | tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return f"{value:.9g}" if isinstance(value, float) else str(value)
