"""Reads records as conversations or as pairs of texts; broken ones are named by their line, and fatal or counted."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal, TypeVar

from headedit.data.batches import IGNORED, Encoded
from headedit.data.conversation import to_pair
from headedit.data.formats import Format, Message, rename_fields, to_messages
from headedit.data.rows import is_encoded, read_row
from headedit.data.sources import SourceRow, read_rows
from headedit.errors import HeadEditError
from headedit.io.bars import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Records:
    """The records of a file.

    Fields:
        pairs: (prompt, response) texts, in the order of the file.
        broken: a message for each record that was left out.
    """

    pairs: list[tuple[str, str]]
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from.

    Fields:
        index: its number among all records of its source, broken ones too, from 0.
        where: its file and line, for messages.
        messages: the turns, the last of them a response; none where the record holds token ids.
        format: the format of its record.
        encoded: token ids and labels, where the record holds them.
    """

    index: int
    where: str
    messages: list[Message]
    format: Format | Literal["input_ids"]
    encoded: Encoded | None = None

    @property
    def prompt(self) -> str:
        """Everything except the responses, with case and white space normalised; of token ids those without a label."""
        if self.encoded is not None:
            pairs = zip(self.encoded["input_ids"], self.encoded["labels"], strict=True)
            return " ".join(str(token) for token, label in pairs if label == IGNORED)
        texts = (message["content"] for message in self.messages if message["role"] != "assistant")
        return " ".join("\n".join(texts).split()).casefold()

    @property
    def length(self) -> int:
        """Number of characters of all turns, or of tokens."""
        if self.encoded is not None:
            return len(self.encoded["input_ids"])
        return sum(len(message["content"]) for message in self.messages)

    @property
    def response(self) -> str:
        """The last response, or the labels."""
        if self.encoded is not None:
            return " ".join(str(label) for label in self.encoded["labels"] if label != IGNORED)
        return self.messages[-1]["content"].strip()


def read_records(path: "str | PathLike[str]", *, skip_broken: bool = False) -> Records:
    """Reads the (prompt, response) pairs of a JSON, JSON lines, CSV or Parquet file.

    Records hold ``instruction`` and ``answer`` (perhaps ``input``), or ``prompt`` and ``response``; see
    ``headedit.data.to_pair``. ``headedit.load_data`` reads conversations and datasets too.

    Args:
        path: the file.
        skip_broken: leave broken records out and report them, instead of stopping at the first.

    Raises:
        HeadEditError: the file cannot be read, is empty, or holds a broken record; the message has its line.
    """
    hint = None if skip_broken else "skip broken records (skip_broken=True, --skip-broken)"
    return Records(*_usable(read_rows(str(path)), lambda i, row: to_pair(row.value, row.where), hint, str(path)))


def read_examples(
    sources: Sequence[str],
    *,
    split: str,
    format: Format | None,
    fields: Mapping[str, str] | None,
    skip_malformed: bool,
    progress: bool,
) -> tuple[list[Conversation], list[str]]:
    """Reads the conversations of sources in their order, and a message for each record that was left out.

    Raises:
        HeadEditError: a source cannot be read, there is nothing in them, or a record is malformed and not skipped.
    """

    def example(index: int, row: SourceRow) -> Conversation:
        if is_encoded(row.value) and format is None and fields is None:
            return Conversation(index, row.where, [], "input_ids", read_row(row.value, row.where))
        value = row.value if fields is None else rename_fields(row.value, fields, row.where)
        return Conversation(index, row.where, *to_messages(value, row.where, format))

    rows = (row for source in sources for row in read_rows(source, split))
    hint = None if skip_malformed else "leave such records out with skip_malformed: true (--skip-broken)"
    bar = tqdm(rows, desc=f"reading {sources[0]}", unit=" records", disable=not progress, leave=False)
    return _usable(bar, example, hint, ", ".join(sources))


def _usable(
    rows: Iterable[SourceRow], convert: Callable[[int, SourceRow], T], hint: str | None, name: str
) -> tuple[list[T], list[str]]:
    """Converts rows, and says why some are left out; with a hint the first of those is an error."""
    kept: list[T] = []
    broken: list[str] = []
    for i, row in enumerate(rows):
        try:
            if row.fault is not None:
                raise HeadEditError(row.fault)
            kept.append(convert(i, row))
        except HeadEditError as error:
            if hint is not None:
                raise HeadEditError(f"{error} Correct it, or {hint}.") from None
            broken.append(str(error))
    if not kept:
        reason = f"all {len(broken)} records are broken, the first: {broken[0]}" if broken else "it holds no records"
        raise HeadEditError(f"{name}: there is nothing to use: {reason}.")
    return kept, broken
