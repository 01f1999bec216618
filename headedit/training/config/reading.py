"""Finds a run's file, by its path or among those that come with headedit, and lays changes over it."""

import copy
import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.io.yaml import read_yaml
from headedit.runs.files import RUN_YAML
from headedit.training.config.names import recipe_fields_of, translated
from headedit.training.config.run import RunConfig
from headedit.training.recipes import DEFAULT

_FOLDER = Path(__file__).resolve().parent / "shipped"
_YAML = (".yaml", ".yml")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with headedit, by name."""
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


def find_config(config: "str | PathLike[str]") -> Path:
    """The file of a config.

    Args:
        config: the path of a YAML file, a folder that a run left behind, or the name of a config of headedit.

    Raises:
        HeadEditError: there is none.
    """
    path, shipped = Path(config), shipped_configs()
    if (path / RUN_YAML).is_file():
        return path / RUN_YAML
    if path.is_file() or path.suffix in _YAML:
        return path
    if str(config) in shipped:
        return shipped[str(config)]
    raise HeadEditError(
        f"{config}: there is no such file, and no config of this name comes with headedit."
        f"{suggest(str(config), shipped)} Configs: {', '.join(shipped)}."
    )


def config_text(name: str) -> str:
    """The YAML of a config, with its comments."""
    return find_config(name).read_text(encoding="utf-8")


def read_run(
    config: "str | PathLike[str] | RunConfig | None" = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """The config of a run.

    Args:
        config: a file or a name, see ``find_config``, or a config; None if the overrides say everything.
        overrides: values by key: ``training.learning_rate``, a section with some of its keys, a key of the run such as
            ``seed``, or else a field of the recipe such as ``epochs``. They win over the config; naming another recipe
            leaves the fields of the one before out.

    Raises:
        HeadEditError: there is no such file, or it is not right: the message has file, key, what was found, what was
            expected and the nearest name.
    """
    if isinstance(config, RunConfig):
        where, data = "the run's config", config.to_dict()
    elif config is None:
        where, data = "the options", {}
    else:
        file = find_config(config)
        found = read_yaml(file)
        where = str(file)
        if not isinstance(found, Mapping):
            raise HeadEditError(f"{where}: expected a mapping of keys to values, found {type(found).__name__}.")
        data = dict(found)
    if overrides:
        where = where if config is None else f"{where}, with what is set over it"
        try:
            data = overlaid(data, overrides)
        except HeadEditError as error:
            raise HeadEditError(f"{where}: {error}") from None
    return RunConfig.from_dict(data, where)


def overlaid(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a run with overrides, see ``read_run``; the data are not changed."""
    result = copy.deepcopy(dict(data))
    paths = [(path, value) for key, given in overrides.items() for path, value in _paths(key, given)]
    names = [value for path, value in paths if path == ("recipe", "name")]
    recipe, training = result.get("recipe", {}), result.get("training", {})
    if isinstance(recipe, Mapping) and isinstance(training, Mapping):
        if names and names[-1] != recipe.get("name", DEFAULT):
            recipe = {"name": names[-1]}
        fields, rest = translated(recipe, training)
        for path, _ in paths:
            for name in recipe_fields_of(path[1]) if path[0] == "training" and len(path) == 2 else ():
                fields.pop(name, None)
        result |= {"recipe": fields, "training": rest}
    for path, value in paths:
        _put(result, path, value)
    return result


def _paths(key: str, value: Any) -> list[tuple[tuple[str, ...], Any]]:
    fields = [field.name for field in dataclasses.fields(RunConfig)]
    path = tuple(key.split("."))
    if len(path) > 1:
        return [(path, value)]
    if key not in fields:
        return [(("recipe", key), value)]
    return [((key, name), item) for name, item in value.items()] if isinstance(value, Mapping) else [((key,), value)]


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, last = path
    for name in sections:
        inner = data.get(name)
        data[name] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        data = inner
    data[last] = value
