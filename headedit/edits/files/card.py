"""The model card next to saved edits: what they are, how to load them, which heads they edit, what was measured."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from headedit.edits.adapter import Adapter
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.files.card_metadata import base_name, check_fields, front_matter
from headedit.edits.positions import IN_WORDS
from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.io.tables import markdown_table

CARD_FILE = "README.md"
_WRITTEN = "<!-- Written by headedit,"  # the beginning of the marker, which older cards share
MARKER = f"{_WRITTEN} and again at every save. Delete this line to keep what you write here. -->"
_RUN_FILE = "run.json"
_WIDEST = 160
_MARKS = {(False, False): "·", (True, False): "o", (False, True): "s", (True, True): "#"}
_LEGEND = "`·` closed, `o` offset, `s` scale, `#` both, blank: no edited head"


def write_card(
    edits: AdapterSet,
    directory: "str | PathLike[str]",
    *,
    metrics: Mapping[str, float] | None = None,
    repo_id: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> bool:
    """Writes ``README.md`` into the folder of saved edits, unless it has one that headedit did not write.

    Args:
        edits: the adapter set.
        directory: a folder that exists; recipe, seed and validation loss of a ``run.json`` in it are reported.
        metrics: names and values to report.
        repo_id: the id of the hub repository to load from; by default this folder.
        fields: fields of the front matter, such as ``license`` and ``datasets``; see ``card_metadata.FIELDS``.

    Returns:
        Whether it was written.

    Raises:
        HeadEditError: it cannot be written, a metric is not a number, or a field is not one of a card.
    """
    check_metrics(metrics)
    check_fields(fields or {})
    folder = Path(directory)
    file = folder / CARD_FILE
    if file.exists() and not is_ours(file):
        return False
    try:
        write_atomically(file, card(edits, folder, metrics or {}, fields or {}, repo_id).encode())
    except OSError as error:
        raise HeadEditError(f"{file}: the model card cannot be written ({error.strerror}).") from None
    return True


def is_ours(file: Path) -> bool:
    """Whether a card was written by headedit and may be overwritten."""
    try:
        return _WRITTEN in file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def check_metrics(metrics: Mapping[str, float] | None) -> None:
    """Raises a HeadEditError where a metric has no name or is not a number."""
    for name, value in (metrics or {}).items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise HeadEditError(f"metrics: found {name!r}: {value!r}, expected a name and a number.")


def card(
    edits: AdapterSet, folder: Path, metrics: Mapping[str, float], fields: Mapping[str, Any], repo_id: str | None = None
) -> str:
    """The text of a model card: YAML front matter for the hub, then Markdown.

    Args:
        edits: the adapter set.
        folder: the folder of the edits, with the record of the run that made them where there is one.
        metrics: names and values to report.
        fields: fields of the front matter that the user gives.
        repo_id: the id to load from; by default a placeholder.
    """
    record = _record_of(folder)
    front = front_matter(edits.model, folder, fields=fields, metrics=metrics, run=record, repo_id=repo_id)
    run, name = _reported(record), base_name(edits.model, fields)
    base = f"a {type(edits.model).__name__}" if name is None else f"`{name}`"
    counts = edits.module.count_open()
    rows = [("edited heads", _of(counts["any"])), ("open offset gates", _of(counts["offset"]))]
    rows += [("open scale gates", _of(counts["scale"]))]
    positions = edits.module.config.positions
    rows += [] if positions == "all" else [("acts on", IN_WORDS[positions])]
    rows += [("effective parameters", f"{edits.module.count_effective_parameters():,}")]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        MARKER,
        f"# Head edits for {base}",
        "Learned, gated edits of attention heads, "
        "`z' = (1 + g_m · m) ⊙ z + g_a · a` for the output z of a head in front of the output projection; see "
        "JoLA, [arXiv 2502.01179](https://arxiv.org/abs/2502.01179). The base model is not included, nor changed.",
        _table(rows),
        "## How to load\n\n```python\nimport headedit, transformers\n"
        f'model = transformers.AutoModelForCausalLM.from_pretrained("{name or "the-base-model"}")\n'
        f'edits = headedit.load(model, "{repo_id or "this-folder"}")\n```',
        f"## Which heads\n\n{_LEGEND}.\n\n" + "\n\n".join(_map(edits.module, kind) for kind in edits.module.kinds()),
    ]
    if metrics:
        parts.append("## Measured\n\n" + _table([(key, f"{value:.4g}") for key, value in metrics.items()]))
    if run:
        parts.append("## Training\n\n" + _table([(key, str(value)) for key, value in run.items()]))
    return "\n\n".join(parts) + "\n"


def _record_of(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder; empty where there is no run, or it cannot be read."""
    try:
        record = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _reported(record: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run that a card reports."""
    labels = {"recipe": "recipe", "seed": "seed", "train_examples": "examples", "steps": "steps"}
    reported = {label: record[key] for key, label in labels.items() if isinstance(record.get(key), int | str)}
    losses = {"best_eval_loss": "validation loss", "test_loss": "test loss", "test_loss_base": "test loss, unedited"}
    return reported | {
        label: f"{record[key]:.4f} nats per token"
        for key, label in losses.items()
        if isinstance(record.get(key), float)
    }


def _map(adapter: Adapter, kind: str) -> str:
    """A grid of characters, layers down and heads across, in a code block."""
    rows: dict[int, str] = {}
    for site, edit in adapter.pairs():
        if site.kind == kind:
            opened = {vector: edit.is_open(vector).tolist() for vector in edit.vectors}
            offset, scale = (opened.get(vector, [False] * site.heads) for vector in ("offset", "scale"))
            marks = "".join(_MARKS[pair] for pair in zip(offset, scale, strict=True))
            rows[site.layer] = rows.get(site.layer, "") + marks
    width, layers = max(map(len, rows.values())), max(site.layers for site in adapter.sites if site.kind == kind)
    if width > _WIDEST:
        counts = [(f"layer {layer}", f"{len(row) - row.count('·')} of {len(row)}") for layer, row in rows.items()]
        return f"{kind.capitalize()}, edited heads by layer (a map would be {width} wide):\n\n{_table(counts)}"
    margin = max(len("layer"), len(str(layers - 1)))
    header = "".join(f"{head:<8}" for head in range(0, width, 8)).rstrip()
    lines = [f"{'layer':>{margin}}  {header}", *(f"{i:>{margin}}  {rows.get(i, '')}".rstrip() for i in range(layers))]
    return "\n".join([f"{kind.capitalize()}, layers down and heads across:\n", "```text", *lines, "```"])


def _of(count: tuple[int, int]) -> str:
    return f"{count[0]} of {count[1]}"


def _table(rows: list[tuple[str, str]]) -> str:
    return markdown_table(["", ""], ([" ".join(cell.split()) for cell in row] for row in rows), left=2)
