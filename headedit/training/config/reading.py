"""Reads the config of a run, from a file or from those that come with headedit, with overrides."""

import copy
import dataclasses
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.yaml import read_yaml
from headedit.runs.files import RUN_YAML
from headedit.training.config.names import recipe_fields_of, route_keys
from headedit.training.config.released import released_sections
from headedit.training.config.run import RunConfig
from headedit.training.recipes import DEFAULT

_FOLDER = Path(__file__).resolve().parent / "shipped"
_TUNE_FOLDER = Path(__file__).resolve().parent / "tune"
_YAML = (".yaml", ".yml")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with headedit, by name."""
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


def tune_configs() -> dict[str, Path]:
    """The configs of ``headedit tune`` that come with headedit, by name."""
    return {file.stem: file for file in sorted(_TUNE_FOLDER.glob("*.yaml"))}


def find_file(config: "str | PathLike[str]", of_run: str, shipped: Mapping[str, Path]) -> Path | None:
    """The path of a config's file: its own, or the file of a run in a folder, or a shipped one; None if there is none.

    Args:
        config: a path, a folder or a name.
        of_run: the name of the file in the folder of a run.
        shipped: the files that come with headedit, by name.
    """
    path = Path(config)
    if os.path.isfile(path / of_run):
        return path / of_run
    if os.path.isfile(path) or path.suffix in _YAML:
        return path
    return shipped.get(str(config))


def find_config(config: "str | PathLike[str]") -> Path:
    """The path of a config's file.

    Args:
        config: the path of a YAML file, the folder of a run, or the name of a config that comes with headedit.

    Returns:
        The path; one that ends with ``.yaml`` or ``.yml`` is returned as it is, whether there is such a file or not.

    Raises:
        HeadEditError: there is no such file, folder or name.
    """
    shipped = shipped_configs()
    found = find_file(config, RUN_YAML, shipped)
    if found is not None:
        return found
    if str(config) in tune_configs():
        raise HeadEditError(f"{config}: is a config of another command: headedit tune {config}.")
    raise HeadEditError(
        f"{config}: there is no such file, and headedit has no config of this name."
        f"{suggest(str(config), shipped, title='Configs')}"
    )


def config_text(name: str) -> str:
    """The YAML text of a config, with its comments.

    Raises:
        HeadEditError: there is no such config, or its file cannot be read.
    """
    file = tune_configs().get(name) or find_config(name)
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise HeadEditError(f"{file}: is not UTF-8 text (byte {error.start}).") from None


def read_run(
    config: "str | PathLike[str] | RunConfig | None" = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Reads the config of a run.

    Args:
        config: a file or a name, see ``find_config``, or a config; None if the overrides are a complete config.
        overrides: values by key, which replace those of the config. A key is a path such as
            ``training.learning_rate``, a section with some of its keys, a key of the run such as ``seed``, or else a
            field of the recipe such as ``epochs``. Naming another recipe drops the fields of the config's recipe.

    Raises:
        HeadEditError: there is no such file, or its content is wrong; the message names the file, the key, what was
            found, what was expected, and the nearest valid name.
    """
    if isinstance(config, RunConfig):
        where, data = "the run's config", config.to_dict()
    elif config is None:
        where, data = "the options", {}
    else:
        file = find_config(config)
        if file.suffix == ".sh":
            raise HeadEditError(
                f"{file}: is a shell script. One that calls JoLA's run_jola.py is converted by: "
                f"headedit import jola-config {file} --output run.yaml"
            )
        found = read_yaml(file)
        where = str(file)
        if not isinstance(found, Mapping):
            raise HeadEditError(f"{where}: expected a mapping of keys to values, found {type(found).__name__}.")
        if "method" in found:
            raise HeadEditError(
                f"{where}: has a 'method', so it is a config of another command: headedit tune {where}."
            )
        sections = released_sections(found)
        if sections:
            raise HeadEditError(
                f"{where}: is a config of JoLA's released code (its sections are {', '.join(sections)}), not a run of "
                f"headedit. Convert it: headedit import jola-config {where} --output run.yaml"
            )
        data = dict(found)
    if overrides:
        where = where if config is None else f"{where}, with overrides"
        try:
            data = merge_overrides(data, overrides)
        except HeadEditError as error:
            raise HeadEditError(f"{where}: {error}") from None
    return RunConfig.from_dict(data, where)


def merge_overrides(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's plain data, with overrides as in ``read_run``."""
    result = copy.deepcopy(dict(data))
    paths = [(path, value) for key, given in overrides.items() for path, value in _paths(key, given)]
    names = [value for path, value in paths if path == ("recipe", "name")]
    recipe, training = result.get("recipe", {}), result.get("training", {})
    if isinstance(recipe, Mapping) and isinstance(training, Mapping):
        if names and names[-1] != recipe.get("name", DEFAULT):
            recipe = {"name": names[-1]}
        fields, rest = route_keys(recipe, training)
        for path, _ in paths:
            for name in recipe_fields_of(path[1]) if path[0] == "training" and len(path) == 2 else ():
                fields.pop(name, None)
        result |= {"recipe": fields, "training": rest}
    for path, value in paths:
        strict.put(result, path, value)
    return result


def _paths(key: str, value: Any) -> list[tuple[tuple[str, ...], Any]]:
    fields = [field.name for field in dataclasses.fields(RunConfig)]
    path = tuple(key.split("."))
    if len(path) > 1:
        return [(path, value)]
    if key not in fields:
        return [(("recipe", key), value)]
    return [((key, name), item) for name, item in value.items()] if isinstance(value, Mapping) else [((key,), value)]
