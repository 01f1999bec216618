"""Pages of the reference, made from the code: functions, commands, the keys of files, and the table of models."""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

SUBJECTS = {
    "Attach and load": "attach load handle load_model EditConfig HeadEdits Gates Adapter HeadSite ModelStatus",
    "Data": "load_data read_records DataConfig Data Records",
    "Train": "fit train steer HeadEditTrainer HeadEditMixin SparseTuning RunConfig Objective Run History Level "
    "PruningPath Selection Spread Stability Steering",
    "Evaluate": "evaluate exact_match compare Task Source Report CompareConfig",
    "Evidence": "evidence leave_one_out patch attribute integrate iti tokens agreement separation head_norms Head "
    "HeadEffects HeadEstimates HeadProbes HeadWords ScaleChange TokenChanges",
    "Plots": "plot",
    "Models and specs": "doctor certify draft_spec Certificate Draft Spec import_jola import_lofit read_lofit",
    "Other": "HeadEditError demo __version__",
}
"""The public names by subject; a name that stands nowhere stops the build."""


class Incomplete(Exception):
    """Something public is not documented, or stands on no page."""


def read_examples() -> dict[str, str]:
    """The example of each public name, from the page of examples."""
    text = (Path(__file__).resolve().parent.parent / "examples.md").read_text(encoding="utf-8")
    found = re.findall(r"^### `([\w.]+)`\n+```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return dict(found)


def file_of(subject: str) -> str:
    """The page of a subject."""
    return f"reference/api-{subject.lower().replace(' ', '-')}.md"


def api_pages() -> dict[str, str]:
    """A page for each subject: every public name with its docstring and its example.

    Raises:
        Incomplete: a public name is on no page, or has no docstring or no example.
    """
    import headedit

    examples = read_examples()
    listed = [name for names in SUBJECTS.values() for name in names.split()]
    if left := sorted(set(headedit.__all__) ^ set(listed)):
        raise Incomplete(f"Public names that stand on no page of the reference, or are not public: {left}.")
    if bare := sorted(set(headedit.__all__) - set(examples)):
        raise Incomplete(f"Public names without an example in docs/examples.md: {bare}.")
    pages = {}
    for subject, names in SUBJECTS.items():
        parts = [f"# {subject}\n"]
        for name in names.split():
            thing = getattr(headedit, name)
            check_documented(name, thing)
            paths, level = [path_of(name, thing)], 2
            if inspect.ismodule(thing) or isinstance(thing, str):
                text = inspect.getdoc(thing) if inspect.ismodule(thing) else "The version, as a text."
                parts.append(f"## `{name}`\n\n{plain(text or '')}\n\n```python\n{examples[name]}```\n")
                paths, level = list(members_of(thing)), 3
            parts += [f"::: {path}\n    options: {{heading_level: {level}}}\n" for path in paths]
        pages[file_of(subject)] = "\n".join(parts)
    return pages


def path_of(name: str, thing: Any) -> str:
    """Where a public name is defined."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', name)}"


def members_of(module: Any) -> Iterator[str]:
    """The functions and classes that a public module has, and where they are defined."""
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            yield from (f"{thing.__name__}.{key}" for key, found in vars(thing).items() if is_own(found, thing, key))
        elif callable(thing):
            yield path_of(name, thing)


def is_own(thing: Any, module: Any, name: str) -> bool:
    """Whether a name is a public function of a module that defines it."""
    return inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")


def check_documented(name: str, thing: Any) -> None:
    """Raises Incomplete if something public, or a public method of it, has no docstring."""
    found = {name: thing}
    if inspect.isclass(thing) and thing.__module__.startswith("headedit"):
        methods = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        kinds = (types.FunctionType, property, staticmethod, classmethod)
        found |= {f"{name}.{key}": value for key, value in methods.items() if isinstance(value, kinds)}
    if bare := [key for key, value in found.items() if not inspect.getdoc(value)]:
        raise Incomplete(f"Public names without a docstring: {bare}.")


def command_page() -> str:
    """Every command of the command line: its help, its arguments and options, and its examples."""
    import typer.main

    from headedit.cli.main import app

    parts = [
        "# Commands\n\n`headedit COMMAND --help` says the same. A mistake "
        "ends with exit code 2 and one message that says what, where and what to do; `--debug` adds the traceback.\n"
    ]
    for words, command in commands(typer.main.get_command(app)):
        if not words:
            continue
        text = inspect.cleandoc(command.help or "")
        if not text:
            raise Incomplete(f"headedit {words}: has no help.")
        lines = re.findall(r"Example: `([^`]+)`", text)
        text = re.sub(r"\n*Example: `[^`]+`", "", text)
        parts.append(f"## headedit {words} {{ #{words.replace(' ', '-')} }}\n\n{text}\n")
        if lines:
            parts.append("```bash\n" + "\n".join(lines) + "\n```\n")
        rows = [row_of(words, parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            parts.append(table(["", "takes", "default", ""], rows))
    return "\n".join(parts)


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command with the words that call it, groups included."""
    yield " ".join(words), command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def row_of(words: str, parameter: Any) -> list[str]:
    """An argument or option of a command: its names, what it takes, its default, its help."""
    text = getattr(parameter, "help", None)
    if not text:
        raise Incomplete(f"headedit {words}: {parameter.name} has no help.")
    told = re.search(r"\s*\[default: ([^\]]+)\]", text)
    text = re.sub(r"\s*\[default: [^\]]+\]", "", text)
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    takes = "" if getattr(parameter, "is_flag", False) else taken(parameter)
    value = parameter.default() if callable(parameter.default) else parameter.default
    value = getattr(value, "value", value)
    given = value is not None and value is not False and value != []
    default = told[1] if told else "required" if parameter.required else shown(value) if given else ""
    return [names if is_option else f"`{parameter.name.upper()}`", takes, default, text]


def taken(parameter: Any) -> str:
    """What an argument or option takes, in words; typer keeps its type under another name in each of two versions."""
    told = getattr(parameter, "type_descriptor", None)
    if told is None:
        choices = getattr(parameter.type, "choices", None)
        return " · ".join(map(str, choices)) if choices else str(parameter.type.name)
    kind = told.annotation
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return " · ".join(f"`{member.value}`" for member in kind)
    return {list[str]: "text, repeated"}.get(kind, type_of(kind))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with a field to search it in."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ("| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join(cells) + "\n"


def searched(text: str) -> str:
    """A table that a reader can filter by typing."""
    return f'<div class="searched" markdown="block">\n\n{text}\n</div>\n'


def key_pages() -> dict[str, str]:
    """A page of keys for each kind of file: runs, sweeps, comparisons, tasks, specs."""
    from headedit import DataConfig, EditConfig, RunConfig, Source, Task
    from headedit.bench.compare.config import CompareConfig, ComparedTask
    from headedit.specs.schema import MergeRule, NumberRule, Refusal, SiteRule, Spec
    from headedit.training.config.model import ModelConfig
    from headedit.training.config.run import LoggingConfig
    from headedit.training.recipes import RECIPES
    from headedit.training.sweep.config import EvaluateConfig, SweepConfig

    recipes = {f"recipe: {name}": cls for name, cls in RECIPES.items()}
    return {
        "reference/run-yaml.md": keys(
            "run.yaml",
            "A run of `headedit train`. `--set data.examples=200` sets a key on the command line.",
            {"": RunConfig, "model": ModelConfig, "data": DataConfig, "edits": EditConfig, "logging": LoggingConfig}
            | recipes,
        ),
        "reference/sweep-yaml.md": keys(
            "sweep.yaml", "Runs of `headedit sweep`.", {"": SweepConfig, "evaluate": EvaluateConfig}
        ),
        "reference/compare-yaml.md": keys(
            "compare.yaml",
            "A comparison of `headedit compare`.",
            {"": CompareConfig, "tasks: NAME": ComparedTask, "model": ModelConfig},
        ),
        "reference/task.md": keys(
            "Task files",
            "A task of `headedit eval --tasks`, `headedit compare` and `headedit.evaluate`.",
            {"": Task, "data": Source},
        ),
        "reference/spec.md": keys(
            "Spec files",
            "Where a family of models has its heads; see [Add an architecture](../how-to/add-an-architecture.md).",
            {
                "": Spec,
                "sites: KIND": SiteRule,
                "heads, head_dim, groups": NumberRule,
                "merge": MergeRule,
                "refuse": Refusal,
            },
        ),
    }


def keys(title: str, lead: str, sections: dict[str, Any]) -> str:
    """A page with a table of keys for each section of a file."""
    parts = [f"# {title}\n\n{lead}\n"]
    for section, cls in sections.items():
        first = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"## {section or 'The file'}\n\n{plain(first)}\n")
        parts.append(searched(table(["key", "takes", "default", ""], key_rows(cls))))
    return "\n".join(parts)


def key_rows(cls: Any) -> list[list[str]]:
    """The fields of a dataclass, with type, default and what its docstring says of them.

    Raises:
        Incomplete: the docstring does not say what a field is.
    """
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        told |= told_fields(base)
    hints, rows = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.name not in told:
            raise Incomplete(f"The docstring of {cls.__name__} does not say what {field.name} is.")
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        default = "required" if value is dataclasses.MISSING else shown(value)
        rows.append([f"`{field.name}`", type_of(hints[field.name]), default, told[field.name]])
    return rows


def told_fields(cls: Any) -> dict[str, str]:
    """What the docstring of a class says of each of its fields."""
    text = inspect.cleandoc(cls.__doc__ or "")
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = bool(re.match(r"(Fields:|Exactly one source)", line)) or (
            inside and (line.startswith(" ") or not line)
        )
        start = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if inside and start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        elif inside and line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    if cls.__name__ == "NumberRule":
        found |= {"times": "what was found is multiplied by it.", "divide": "what was found is divided by it."}
    if cls.__name__ == "Refusal":
        found |= {"reason": "what the user is told.", "when": "config values that must all be met; none: always."}
    return {name: plain(line) for name, line in found.items()}


def plain(text: str) -> str:
    """Text of a docstring as Markdown."""
    return text.replace("``", "`")


def shown(value: Any) -> str:
    """A default as YAML would have it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "its defaults"
    if value is None:
        return "null"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_of(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_of(argument) for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return " · ".join(f"`{argument}`" for argument in arguments)
    if origin in (list, tuple):
        return f"list of {type_of(arguments[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "mapping"
    return {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}.get(
        hint, "anything"
    )


def model_table() -> str:
    """Every causal-LM type of the installed transformers: its sites, whether an offset merges, proof, serving."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    from headedit.serving.vllm.table import ARCHITECTURES
    from headedit.specs.registry import all_specs
    from headedit.specs.tiny import tiny_configs

    specs, tiny = all_specs(), tiny_configs()
    rows = []
    for name in sorted(CLASSES):
        spec = specs.get(name)
        if spec is None:
            rows.append([f"`{name}`", "no spec", "", "", ""])
            continue
        sites = ", ".join(spec.kinds()) or f"refused: {spec.refuse[0].reason}"
        proof = "" if not spec.sites else "a tiny model" if name in tiny else "a model of yours"
        merged = "scales merged" if spec.offset in ("-", "no") else "merged"
        serving = f"the plugin, {merged}" if CLASSES[name] in ARCHITECTURES else merged
        merges = {"yes": "into its bias", "no": "a scale alone", "-": ""}.get(spec.offset, spec.offset)
        rows.append([f"`{name}`", sites, merges, proof, serving if spec.sites else ""])
    return searched(table(["type", "sites", "an offset merges", "proved on", "serving"], rows))
