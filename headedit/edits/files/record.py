"""What is recorded of edits, as plain data: the model, the spec, the versions, and each adapter with its sites.

A record may come from anyone: its sizes, numbers and names are checked before anything is made of them.
"""

from datetime import datetime
from typing import Any

import torch
import transformers
from torch import nn

from headedit.edits.adapter import Adapter
from headedit.edits.config import EditConfig
from headedit.edits.files.compatibility import SITE_KEYS, describe, site_row
from headedit.errors import HeadEditError
from headedit.specs import Spec
from headedit.specs.schema import SITE_KINDS
from headedit.version import __version__

_MOST_NUMBERS = 2**26  # in one vector of all sites; a 70B model has 2**19
_LARGEST = 1e6  # of a setting of the gates, so that nothing overflows


def base_record(model: nn.Module, spec: Spec) -> dict[str, Any]:
    """Versions, base model and spec, which is without its hash."""
    return {
        "versions": {
            "headedit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "base_model": describe(model),
        "spec": spec.to_dict(),
    }


def adapter_record(adapter: Adapter) -> dict[str, Any]:
    """Config, strength and sites of an adapter, and its date where it has one."""
    return {
        "config": config_record(adapter.config),
        "strength": adapter.strength,
        "sites": [site_row(site) for site in adapter.sites],
        **({} if adapter.date is None else {"date": adapter.date}),
    }


def config_record(config: EditConfig) -> dict[str, Any]:
    """The fields of a config; positions where they are not all, so that older versions can read the others."""
    return {key: value for key, value in vars(config).items() if key != "positions" or value != "all"}


def check_keys(record: object, kinds: dict[str, type], where: str) -> dict[str, Any]:
    """The record, if it is a mapping whose values under some keys are of these types.

    Raises:
        HeadEditError: it is not.
    """
    for key, kind in kinds.items():
        if not isinstance(record, dict) or type(record.get(key)) is not kind:
            raise HeadEditError(f"{where}: the key '{key}' is missing or not a {kind.__name__}; the file is damaged.")
    assert isinstance(record, dict)
    return record


def read_config(record: dict[str, Any], where: str) -> EditConfig:
    """The config of an adapter's record.

    Raises:
        HeadEditError: it is none, or its gates would overflow.
    """
    config = EditConfig.from_dict(record["config"], f"{where}: config")
    for key in ("temperature", "stretch", "gate_init", "init_std"):
        value = getattr(config, key)
        if (
            max(map(abs, value if isinstance(value, tuple) else [value])) > _LARGEST
            or config.temperature < 1 / _LARGEST
        ):
            raise HeadEditError(f"{where}: config: {key}: found {value}, which no edits can have.")
    return config


def recorded_date(record: dict[str, Any], where: str) -> str | None:
    """The date of an adapter's record; None where it has none.

    Raises:
        HeadEditError: it is no date.
    """
    date = record.get("date")
    if date is None:
        return None
    try:
        return datetime.fromisoformat(date).isoformat()
    except (TypeError, ValueError):
        raise HeadEditError(f"{where}: date: found {date!r:.80}, expected one such as 2026-03-01.") from None


def check_site_rows(rows: list[Any], where: str) -> None:
    """Raises a HeadEditError where rows cannot be the sites of edits."""
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(SITE_KEYS):
            raise HeadEditError(f"{where}: sites: found {row!r:.80}, expected the keys {', '.join(SITE_KEYS)}.")
        numbers = [row[key] for key in ("layer", "layers", "heads", "head_dim")]
        texts = isinstance(row["name"], str) and row["name"] and row["kind"] in SITE_KINDS
        if not (
            texts and all(type(n) is int for n in numbers) and 0 <= numbers[0] < numbers[1] and min(numbers[2:]) > 0
        ):
            raise HeadEditError(f"{where}: sites: found {row!r:.200}, which cannot be a site.")
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names) or not names:
        raise HeadEditError(f"{where}: sites: {'one is named twice' if names else 'there is none'}.")
    numbers = sum(row["heads"] * row["head_dim"] for row in rows)
    cells = max(row["layers"] for row in rows) * sum(row["heads"] for row in rows)
    if max(numbers, cells) > _MOST_NUMBERS:
        raise HeadEditError(f"{where}: sites: they have {max(numbers, cells):,} numbers, more than edits can have.")
