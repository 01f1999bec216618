"""Translates a config of JoLA's released code, or of its fork for OLMo-2, into a run of headedit, key by key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.yaml import read_yaml
from headedit.training.config.names import argument_hints
from headedit.training.config.released.rules import LONGEST, RULES, SECTIONS, Result
from headedit.version import __version__

RECIPE = "jola-released"

_DEFAULTS: dict[str, Any] = {
    "model.dtype": "float32",
    "data.template": "alpaca",
    "data.max_length": LONGEST,
    "data.too_long": "drop",
    "recipe.name": RECIPE,
    "recipe.patience": 2,
    "training.learning_rate": 5e-5,
    "training.lr_scheduler_type": "linear",
    "training.warmup_steps": 0,
    "training.num_train_epochs": 3,
    "training.per_device_train_batch_size": 8,
    "seed": 42,
    "data.seed": 42,
}
"""What acts where a file says nothing: what is written in the published code, and transformers' defaults."""

_ORDER = ("model", "data", "edits", "recipe", "training", "logging", "seed", "output")


@dataclass(frozen=True)
class Line:
    """One key of the published file.

    Fields:
        key: its name there.
        value: its value there.
        run: the keys of the run that follow from it, and their values; empty where it has no counterpart.
        reason: why it has none, or what else there is to say.
    """

    key: str
    value: Any
    run: dict[str, Any]
    reason: str = ""

    @property
    def ours(self) -> str:
        """The keys of the run and their values, in words; a dash where there are none."""
        return ", ".join(f"{path}: {_plain(value)}" for path, value in self.run.items()) or "–"


@dataclass(frozen=True)
class Translation:
    """A published run as a run of headedit.

    Fields:
        source: the file, or what the flags were.
        run: the run, as plain data for ``RunConfig.from_dict``.
        lines: what became of each key, in the order of the file.
    """

    source: str
    run: dict[str, Any]
    lines: list[Line] = field(default_factory=list)

    def text(self) -> str:
        """The run as YAML, after a comment on the keys that have no counterpart."""
        lead = [f"# Converted by headedit {__version__} from {self.source}, a run of JoLA's released code."]
        lead += [f"# The base model keeps its own rope_theta, and the gates start as released (recipe {RECIPE})."]
        left_out = [line for line in self.lines if not line.run]
        if left_out:
            lead += ["#", "# Without counterpart here:"]
            lead += [f"#   {line.key}: {_plain(line.value)} - {line.reason}" for line in left_out]
        body = yaml.safe_dump(self.run, sort_keys=False, allow_unicode=True, width=120)
        return "\n".join(lead) + f"\n{body}"


def released_sections(data: object) -> list[str]:
    """The sections of plain data that only a config of JoLA's code has."""
    return [name for name in SECTIONS if name in data] if isinstance(data, Mapping) else []


def read_released(file: "str | PathLike[str]") -> Translation:
    """Translates a YAML file of JoLA's released code or of its fork.

    Raises:
        HeadEditError: the file cannot be read, is no such config, or has a section or value that is not known.
    """
    path = Path(file)
    found = read_yaml(path)
    if not released_sections(found):
        raise HeadEditError(
            f"{path}: is no config of JoLA's code, which has the sections {', '.join(SECTIONS)}; a run of headedit has "
            "model, data, recipe and training."
        )
    given: dict[str, Any] = {}
    for name, section in found.items():  # type: ignore[attr-defined]
        if name not in SECTIONS:
            raise HeadEditError(f"{path}: unknown section {name!r}.{suggest(name, SECTIONS)}")
        if not isinstance(section, Mapping):
            raise HeadEditError(f"{path}: {name}: expected a mapping of keys to values, found {section!r:.60}.")
        given |= {f"{name}.{key}": value for key, value in section.items()}
    return translate(given, str(path))


def translate(given: Mapping[str, Any], source: str, names: Mapping[str, str] | None = None) -> Translation:
    """Translates the keys of a published run.

    Args:
        given: the keys with their sections, and their values.
        source: where they are from, for messages.
        names: what each key is called there; by default by its section and itself. A key without a name is one that is
            written in the published code, and gets no line.

    Raises:
        HeadEditError: a value is not known, or no model is named.
    """
    lines: list[Line] = []
    run: dict[str, Any] = {"model.name": None, "data.train": None, **_DEFAULTS}
    for key, value in given.items():
        name = key if names is None else names.get(key)
        try:
            result = _follow(key, value, given)
        except HeadEditError as error:
            raise HeadEditError(f"{source}: {error}") from None
        run |= result.run
        if name is not None:
            lines.append(Line(name, value, *result))
    if run["model.name"] is None:
        raise HeadEditError(f"{source}: names no model; give pretrained_model_name_or_path or base_model_name.")
    if run["data.train"] is None:
        raise HeadEditError(f"{source}: names no data; give data_path.")
    if run.get("model.device_map") is not None:
        run.pop("model.device", None)
    return Translation(source, _nested(run), lines)


def _follow(key: str, value: Any, given: Mapping[str, Any]) -> Result:
    rule = RULES.get(key)
    section, _, name = key.partition(".")
    if rule is not None:
        acts_at_null = key in ("training_config.report_to", "jola_config.gate_scheduler", "jola_config.gate_lambda")
        return rule(given, value) if value is not None or acts_at_null else Result({}, "null, the default")
    if section == "training_config" and name in argument_hints():
        return Result({f"training.{name}": value})
    return Result({}, "neither JoLA's code nor its fork has such a key")


def _nested(run: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a run, in their order, from keys that are paths."""
    found: dict[str, Any] = {}
    for path, value in run.items():
        strict.put(found, path.split("."), value)
    return {name: found[name] for name in _ORDER if name in found}


def _plain(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text or "''"
