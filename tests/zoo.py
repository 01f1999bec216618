"""Where the heads of every causal-LM type of transformers are known to be, in its tiny model.

``zoo.jsonl`` has a line a type: for every site its path, heads and width (no sites: a type without heads), and the
version of transformers that brought the type, where an older one is supported. The facts were read off live models,
independently of the specs that are tested with them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import transformers
from packaging.version import Version

from headedit.specs.tiny import tiny_ids as zoo_ids
from headedit.specs.tiny import tiny_model as zoo_model

__all__ = ["BUILDABLE", "UNBUILDABLE", "WITHOUT_HEADS", "WITH_HEADS", "ZOO", "Facts", "zoo_ids", "zoo_model"]


@dataclass(frozen=True)
class Facts:
    """The sites of a tiny model as (path, heads, width), and whether a gate stands behind the heads."""

    sites: list[tuple[str, int, int]]
    position: str


def _read() -> dict[str, Facts]:
    rows = map(json.loads, Path(__file__).with_name("zoo.jsonl").read_text().splitlines())
    installed = [row for row in rows if Version(row.get("since", "0")) <= Version(transformers.__version__)]
    return {row["model_type"]: Facts([tuple(site) for site in row["sites"]], row["position"]) for row in installed}


ZOO = _read()
UNBUILDABLE = {
    "gemma4_assistant": "transformers 5.23 raises when it builds its cache-sharing modes",
    "gemma4_unified_assistant": "transformers 5.23 raises when it builds its cache-sharing modes",
    "gemma3n": "its vision tower needs the package timm",
}
WITHOUT_HEADS = sorted(name for name, facts in ZOO.items() if not facts.sites)
BUILDABLE = sorted(set(ZOO) - set(UNBUILDABLE))
WITH_HEADS = sorted(set(BUILDABLE) - set(WITHOUT_HEADS))
