"""What may be given in the place of a spec, a config, saved edits or an adapter's name, and what to write instead."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from headedit.edits.config import EditConfig
from headedit.edits.files.format import CONFIG_FILE, TENSOR_FILE
from headedit.errors import HeadEditError
from headedit.io.describe import describe
from headedit.specs import Spec

_PEFT_FILE = "adapter_config.json"


def spec_and_config(spec: Any, config: Any) -> tuple[Any, EditConfig]:
    """The spec and the config of ``attach``; a config given as the spec is taken as the config.

    Raises:
        HeadEditError: both are configs, or one is something else; the message says what to write.
    """
    if isinstance(spec, nn.Module):
        raise HeadEditError(
            f"spec: found {describe(spec)}, expected the path of a spec file. The model comes first: "
            "headedit.attach(model, config=headedit.EditConfig(...))."
        )
    if _is_config(spec):
        if config is not None:
            raise HeadEditError("Two configs are given; give one: headedit.attach(model, config=...).")
        spec, config = None, spec
    return spec, as_config(config)


def as_config(given: Any, default: EditConfig | None = None) -> EditConfig:
    """The config that was given: an ``EditConfig``, or a mapping of its fields.

    Args:
        given: the argument; None for the default.
        default: by default ``EditConfig()``.

    Raises:
        HeadEditError: it is something else, or a key or value that no config has.
    """
    if given is None:
        return EditConfig() if default is None else default
    if isinstance(given, EditConfig):
        return given
    if isinstance(given, Mapping):
        return EditConfig.from_dict(given, "config")
    if isinstance(given, str | PathLike):
        hint = (
            "The path of a spec file is spec=...; saved edits are put on by headedit.load(model, path), or under a "
            "name by load_adapter(path, name)."
        )
    elif isinstance(given, Spec):
        hint = "Give it as spec=..."
    elif hasattr(given, "peft_type"):
        hint = "An adapter of PEFT is put on the same model by peft.get_peft_model, before attach or after it."
    elif given is EditConfig:
        hint = "Call it: EditConfig()."
    else:
        hint = "Its fields may also be given as a mapping."
    raise HeadEditError(
        f"config: found {describe(given)}, expected an EditConfig, such as headedit.EditConfig(layers='8:24'). {hint}"
    )


def check_order(adapter_name: Any, config: Any) -> None:
    """Raises a HeadEditError where a config stands in the place of an adapter's name, and the name in its place."""
    if isinstance(config, str) and not isinstance(adapter_name, str):
        raise HeadEditError(f"The name comes first: add_adapter({config!r}, config).")


def as_list(given: Any, what: str, expected: str, *, least: int = 0) -> list[Any]:
    """What was given as a list, a tuple or an array, as a list.

    Args:
        given: the argument.
        what: its name, for the message.
        expected: what it should be, for the message, such as ``a list of names``.
        least: the fewest items it may have.

    Raises:
        HeadEditError: it is something else, such as a single name, or has fewer items.
    """
    single = isinstance(given, str | bytes | Mapping | nn.Module) or getattr(given, "shape", None) == ()
    items = None if single or not isinstance(given, Iterable) else list(given)
    if items is None or len(items) < least:
        raise HeadEditError(f"{what}: found {describe(given)}, expected {expected}.")
    return items


def saved_edits(given: Any) -> "str | PathLike[str]":
    """Where saved edits are: a folder, the id of a hub repository, or the folder of one of their two files.

    Raises:
        HeadEditError: it is no path, or a path that cannot be one of edits.
    """
    if not isinstance(given, str | PathLike) or not str(given):
        hint = (
            " EditConfig describes new edits: headedit.attach(model, config=...)."
            if isinstance(given, EditConfig)
            else ""
        )
        raise HeadEditError(
            f"path: found {describe(given)}, expected a folder that save_pretrained wrote, or the id of a repository "
            f"on the hub: headedit.load(model, path).{hint}"
        )
    path = Path(given)
    if path.is_file():
        if path.name in (CONFIG_FILE, TENSOR_FILE):
            return path.parent
        hint = f" A spec file is given as spec={str(path)!r}." if path.suffix in (".yaml", ".yml") else ""
        raise HeadEditError(f"{path}: is a file, expected the folder that save_pretrained wrote.{hint}")
    if isinstance(given, PathLike) and not path.exists():
        raise HeadEditError(f"{path}: there is no such folder. The id of a hub repository is given as a text.")
    return given


def folder_to_save_in(given: Any) -> "str | PathLike[str]":
    """The folder that edits are to be saved in.

    Raises:
        HeadEditError: it is no path.
    """
    if not isinstance(given, str | PathLike) or not str(given):
        raise HeadEditError(f"save_directory: found {describe(given)}, expected a folder, such as 'out'.")
    return given


@contextmanager
def naming_contents(path: "str | PathLike[str]") -> Iterator[None]:
    """A context in which a HeadEditError about a folder without edits also says what the folder holds."""
    try:
        yield
    except HeadEditError as error:
        hint = _contents(Path(path))
        if not hint:
            raise
        raise HeadEditError(f"{error} {hint}") from None


def _contents(folder: Path) -> str:
    """What a folder without saved edits holds, and how it is loaded; empty where it holds edits or nothing known."""
    if not folder.is_dir() or (folder / CONFIG_FILE).exists():
        return ""
    if (folder / _PEFT_FILE).is_file():
        return f"It holds an adapter of PEFT: peft.PeftModel.from_pretrained(model, {str(folder)!r}) loads it."
    inner = sorted(str(file.parent) for file in folder.glob(f"*/{CONFIG_FILE}"))
    if inner:
        return f"There are edits in {', '.join(inner[:5])}."
    if (folder / "config.json").is_file():
        return f"It holds a model: headedit.load_model({str(folder)!r}) loads it, and headedit.attach puts edits on it."
    return ""


def _is_config(given: Any) -> bool:
    """Whether what stands in the place of a spec is meant as a config."""
    if isinstance(given, Mapping):
        return "model_types" not in given
    return isinstance(given, EditConfig) or given is EditConfig or hasattr(given, "peft_type")
