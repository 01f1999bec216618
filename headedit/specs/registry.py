"""Which spec describes a model: a path that was given, the user's folders, installed packages, then ours."""

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import nn

from headedit.errors import HeadEditError, suggest
from headedit.hf.config import check_decoder, text_config
from headedit.hf.models import expect_model
from headedit.io.describe import describe
from headedit.specs.schema import Spec, read_spec

FOLDERS_VARIABLE = "HEADEDIT_SPECS"
ENTRY_POINTS = "headedit.specs"

_packaged_cache: dict[str, Spec] = {}


def packaged_folder() -> Path:
    """The folder ``arch_specs``: inside the installed package, or next to it in an editable install."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "arch_specs", package.parent / "arch_specs"):
        if folder.is_dir():
            return folder
    raise HeadEditError(f"The folder arch_specs is missing next to {package}; reinstall headedit.")


def find_spec(model: nn.Module, spec: str | os.PathLike[str] | Spec | None = None) -> Spec:
    """The spec for a model.

    Args:
        model: a model with a ``config``.
        spec: a spec, or the path of a spec file; None to look it up by ``config.model_type``, or that of the
            text decoder in a model of several parts, in the folders of ``HEADEDIT_SPECS``, the entry points
            ``headedit.specs``, and the packaged specs, in this order.

    Raises:
        HeadEditError: there is no spec for the type, it has an encoder and a decoder, a spec file is faulty, or two of
            equal rank claim it.
    """
    if isinstance(spec, Spec):
        return spec
    model_type = model_type_of(model)
    if spec is not None:
        found = read_spec(_spec_file(spec))
        if model_type not in found.model_types:
            listed = ", ".join(found.model_types)
            raise HeadEditError(
                f"{spec}: model_types lists {listed}, but this model is of type '{model_type}'. "
                f"Add '{model_type}' to model_types if the spec is meant for it."
            )
        return found
    known = all_specs()
    if model_type not in known:
        check_decoder(model.config)
    return _look_up(_known_type(model, known) or model_type, known)


def has_spec(model: nn.Module) -> bool:
    """Whether a spec is found by the model's type, or that of its text decoder.

    Raises:
        HeadEditError: the object is not a transformers model, a spec file is faulty, or two of equal rank claim a type.
    """
    return _known_type(model, all_specs()) is not None


def _known_type(model: nn.Module, known: Mapping[str, Spec]) -> str | None:
    """The model's type, or else that of its text decoder, whichever has a spec."""
    types = (model_type_of(model), text_config(model).model_type)
    return next((model_type for model_type in types if model_type in known), None)


def _spec_file(given: Any) -> Path:
    """The path of a spec file.

    Raises:
        HeadEditError: something else was given, such as the name of a model type or a folder.
    """
    by_type = "For a type that headedit knows leave it out: headedit.attach(model)"
    if not isinstance(given, str | os.PathLike):
        raise HeadEditError(f"spec: found {describe(given)}, expected the path of a spec file. {by_type}.")
    path = Path(given)
    if path.is_dir():
        raise HeadEditError(
            f"{path}: is a folder, expected the path of a spec file. Saved edits are put on by "
            "headedit.load(model, path)."
        )
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        what = "is a model type, not a spec file" if str(given) in all_specs() else "there is no such spec file"
        raise HeadEditError(f"{given}: {what}. {by_type}.")
    return path


def spec_of_type(model_type: str) -> Spec:
    """The spec for a ``config.model_type``.

    Raises:
        HeadEditError: there is none; the message has the nearest type and says how to write one.
    """
    return _look_up(model_type, all_specs())


def _look_up(model_type: str, known: dict[str, Spec]) -> Spec:
    if model_type in known:
        return known[model_type]
    raise HeadEditError(
        f"No spec knows the model type '{model_type}'.{suggest(model_type, known)} Draft one by a traced forward "
        f"pass with 'headedit spec draft MODEL --output {model_type}.yaml', or write its ten lines by hand, prove it "
        f"with 'headedit spec check MODEL --spec {model_type}.yaml', and give it: headedit.attach(model, "
        f"spec='{model_type}.yaml'). headedit.attach(model, draft=True) drafts and proves one in place."
    )


def all_specs() -> dict[str, Spec]:
    """Every spec by model type, those of the user's folders first, then installed packages', then ours.

    Raises:
        HeadEditError: a spec file is faulty, or two of equal rank claim a type.
    """
    return {**packaged_specs(), **_installed_specs(), **_user_specs()}


def model_type_of(model: nn.Module) -> str:
    """``config.model_type`` of a model.

    Raises:
        HeadEditError: the object is not a transformers model.
    """
    config: Any = expect_model(model).config
    return str(config.model_type)


def packaged_specs() -> dict[str, Spec]:
    """The specs that come with headedit, by model type; read once per process."""
    if not _packaged_cache:
        _packaged_cache.update(_by_type([packaged_folder()]))
    return _packaged_cache


def _user_specs() -> dict[str, Spec]:
    folders = [Path(p) for p in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if p]
    for folder in folders:
        if not folder.is_dir():
            raise HeadEditError(f"{FOLDERS_VARIABLE} names {folder}, which is not a folder.")
    return _by_type(folders)


def _installed_specs() -> dict[str, Spec]:
    folders = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            value = entry.load()
            folders.append(Path(value() if callable(value) else value))
        except Exception as error:  # whatever the package that registered it raises
            raise HeadEditError(
                f"The entry point '{entry.name}' ({entry.value}) in the group {ENTRY_POINTS} does not give a folder "
                f"of specs: {type(error).__name__}: {error}. Mend or uninstall the package."
            ) from None
    return _by_type(folders)


def _by_type(folders: Iterable[Path]) -> dict[str, Spec]:
    specs: dict[str, Spec] = {}
    for file in _files(folders):
        spec = read_spec(file)
        for model_type in spec.model_types:
            if model_type in specs:
                raise HeadEditError(
                    f"The model type '{model_type}' is described twice: in {specs[model_type].source} "
                    f"and in {file}. Remove it from one of them."
                )
            specs[model_type] = spec
    return specs


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
