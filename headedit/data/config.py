"""The data of a run and how it becomes examples: the section ``data`` of a run's file."""

from dataclasses import dataclass
from typing import Literal

from headedit.data.clock import read_date
from headedit.data.formats import NAMES, Format
from headedit.data.templates import Template
from headedit.errors import HeadEditError, suggest
from headedit.io import strict

TooLong = Literal["drop", "cut_prompt", "fail"]
Source = str | list[str]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources, format, template, lengths, samples and splits.

    A source is a JSON list, JSON lines, CSV or Parquet file (``.json``, ``.jsonl``, ``.csv``, ``.parquet``), several
    of them in a list, a folder that ``datasets`` saved or that has such a file per split (``train.json``,
    ``valid.json``, ``test.json``), or a dataset's id: ``owner/name``, ``owner/name/config``, each perhaps with
    ``:split``. Without one, the split is ``train``, ``validation`` or ``test``, by what it is for. Records that hold
    ``input_ids`` and ``labels``, and perhaps an ``attention_mask``, are taken as they are.

    Fields:
        train: the source of the training examples.
        valid: a source; a whole number, so many further examples of ``train``; or a share below 1 of the training
            examples, held out of them. None for no validation examples.
        test: the same.
        format: ``response``, ``completion``, ``llm-adapters``, ``alpaca``, ``messages`` or ``sharegpt``, see
            ``headedit.data.formats``; None to recognise it by the fields of each record.
        fields: what the fields of a format are called in the records, such as ``{"prompt": "question", "response":
            "answer"}``; the others of a record are not read, apart from ``input`` and ``system``.
        template: ``alpaca`` (the JoLA paper's), ``chatml``, ``chat`` (the tokenizer's own) or ``plain``; None for
            ``alpaca`` for instructions, ``plain`` for prompts, and ``chat`` for conversations, or ``chatml`` where the
            tokenizer has no chat template.
        max_length: the most tokens of an example; None for the model's context.
        too_long: what to do with an example of more: ``drop`` it, ``cut_prompt`` to cut tokens from the left, after
            the begin-of-text and never a part of a response, or ``fail``. The counts are always reported.
        skip_malformed: leave out and report malformed records, instead of stopping at the first.
        examples: how many training examples to draw; None for all.
        valid_examples: how many to draw from the source ``valid``.
        test_examples: how many to draw from the source ``test``.
        seed: seed of all draws.
        date: the date that a chat template is told, in ISO format, such as 2026-03-01; None for today's, or that of the
            run that is resumed.
    """

    train: Source
    valid: Source | int | float | None = None
    test: Source | int | float | None = None
    format: Format | None = None
    fields: dict[str, str] | None = None
    template: Template | None = None
    max_length: int | None = None
    too_long: TooLong = "drop"
    skip_malformed: bool = False
    examples: int | None = None
    valid_examples: int | None = None
    test_examples: int | None = None
    seed: int = 0
    date: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        check_fields(self.fields)
        if self.date is not None:
            read_date(self.date)
        for name in ("train", "valid", "test"):
            value = getattr(self, name)
            if isinstance(value, list | str) and not all(value if isinstance(value, list) else [value]):
                raise HeadEditError(f"{name}: found an empty name, expected a file, a folder or a dataset's id.")
            if value == []:
                raise HeadEditError(f"{name}: the list is empty, expected at least one file or dataset.")
            if isinstance(value, int | float) and not (0 < value < 1 or (value >= 1 and value == int(value))):
                raise HeadEditError(f"{name}: found {value}, expected a whole number, or a share above 0 and below 1.")
        for name in ("examples", "valid_examples", "test_examples", "max_length"):
            least = 2 if name == "max_length" else 1
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected {least} or more.")
        for name in ("valid", "test"):
            if getattr(self, f"{name}_examples") is not None and not isinstance(getattr(self, name), str | list):
                raise HeadEditError(f"{name}_examples: is for a source of its own; give the number as {name}.")

    @staticmethod
    def from_dict(data: object, where: str) -> "DataConfig":
        """A config from plain data, as in the section ``data`` of a run."""
        return strict.build(DataConfig, data, where)


def check_fields(fields: dict[str, str] | None) -> None:
    """Raises a HeadEditError where ``fields`` is empty, or names a field that no format has."""
    if fields is not None and not fields:
        raise HeadEditError("fields: is empty, expected names such as prompt: question.")
    for name in fields or {}:
        if name not in NAMES:
            hint = suggest(name, NAMES, elsewhere=True)
            raise HeadEditError(f"fields: no format has a field {name!r}; expected {', '.join(NAMES)}.{hint}")
