"""Examples as token ids: the loss is on the responses, and a response is never cut silently."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from tqdm.auto import tqdm

from headedit.data.batches import IGNORED, Encoded, StoredRows
from headedit.data.config import TooLong
from headedit.data.conversation import Tokens, conversation_tokens, default_template
from headedit.data.formats import Format, Message, to_messages
from headedit.data.records import Example
from headedit.data.templates import Template
from headedit.errors import HeadEditError

logger = logging.getLogger(__name__)


class EncodedRow(TypedDict):
    """An encoded example and how it came about.

    Fields:
        input_ids: token ids; empty where the example is not used.
        labels: the same on the responses and what ends them, else ``IGNORED``.
        tokens: number of tokens before anything was cut.
        cut: number of tokens that were cut.
        ends: the last token of every response that is kept.
        lost: number of responses that were cut, always whole.
        template: the template.
        fault: why the template refuses the example, else empty.
    """

    input_ids: list[int]
    labels: list[int]
    tokens: int
    cut: int
    ends: list[int]
    lost: int
    template: str
    fault: str


@dataclass(frozen=True)
class Encoder:
    """How a conversation becomes tokens.

    Fields:
        tokenizer: the model's tokenizer.
        max_length: the most tokens; None for no limit.
        template: None for the one that suits the format.
        too_long: see ``DataConfig``; what is to ``fail`` is left out here, as by ``drop``.
        skip_malformed: give a fault for what the template refuses, instead of an error.
    """

    tokenizer: Any
    max_length: int | None = None
    template: Template | None = None
    too_long: TooLong = "drop"
    skip_malformed: bool = False

    def template_of(self, format: Format) -> Template:
        """The template of examples of this format."""
        return self.template or default_template(format, self.tokenizer)

    def __call__(self, example: Example) -> EncodedRow:
        """The encoded example.

        Raises:
            HeadEditError: the template refuses it, and malformed examples are not skipped.
        """
        template = self.template_of(example.format)
        try:
            tokens = conversation_tokens(example.messages, template, self.tokenizer, example.where)
        except HeadEditError as error:
            if not self.skip_malformed:
                raise
            return _row(Tokens([], []), None, template, str(error))
        kept: Tokens | None = tokens
        if self.max_length is not None and len(tokens.ids) > self.max_length:
            bos = self.tokenizer.bos_token_id
            kept = cut_prompt(tokens, self.max_length, bos) if self.too_long == "cut_prompt" else None
        return _row(tokens, kept, template)


def cut_prompt(tokens: Tokens, max_length: int, bos_token_id: int | None) -> Tokens | None:
    """The last ``max_length`` tokens or fewer, behind the begin-of-text token where there is one.

    Earlier responses go whole or stay whole, each with at least one token before it to be foretold from.

    Returns:
        What is left; None where not even the last response would be whole.
    """
    opening = tokens.ids[:1] if tokens.ids[:1] == [bos_token_id] else []
    begin = len(tokens.ids) - max_length + len(opening)
    for start, end in tokens.spans:
        if begin < end and start + len(opening) <= begin:
            begin = end
    spans = [(a - begin + len(opening), b - begin + len(opening)) for a, b in tokens.spans if a >= begin]
    return Tokens(opening + tokens.ids[begin:], spans) if spans else None


def _row(tokens: Tokens, kept: Tokens | None, template: str, fault: str = "") -> EncodedRow:
    ids, spans = (kept.ids, kept.spans) if kept is not None else ([], [])
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return {
        "input_ids": ids,
        "labels": labels,
        "tokens": len(tokens.ids),
        "cut": len(tokens.ids) - len(ids) if ids else 0,
        "ends": [ids[end - 1] for _, end in spans],
        "lost": len(tokens.spans) - len(spans) if ids else 0,
        "template": template,
        "fault": fault,
    }


def encode(
    examples: Iterable[Any], tokenizer: Any, *, max_length: int | None, name: str, progress: bool = True
) -> Sequence[Encoded]:
    """``input_ids`` and ``labels`` of every example, labels only on the responses and their end-of-text.

    Args:
        examples: (prompt, response) pairs, records of any form that ``headedit.data.formats`` names, or records that
            hold ``input_ids`` and ``labels`` already and pass as they are; a ``datasets.Dataset`` of any of these.
            Rows that ``load_data`` keeps on disk stay there, and are as long as it let them.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        max_length: examples of more tokens are left out, and the log says how many; None for no limit.
        name: what to call the set in messages.
        progress: show a bar.

    Raises:
        HeadEditError: the set is empty, an example is of another form, or none is short enough.
    """
    if isinstance(examples, StoredRows):
        return examples
    kept: list[Encoded] = []
    too_long = 0
    encoder = Encoder(tokenizer)
    for i, example in enumerate(tqdm(examples, desc=f"tokenising {name}", disable=not progress, leave=False)):
        row = _encode_one(example, encoder, i, f"{name} example {i + 1}")
        if max_length is not None and len(row["input_ids"]) > max_length:
            too_long += 1
        else:
            kept.append(row)
    if too_long and kept:
        logger.warning(
            "%d of %d %s examples are longer than %d tokens and are left out; none was cut.",
            too_long,
            too_long + len(kept),
            name,
            max_length,
        )
    if not kept:
        reason = f"all {too_long} examples are longer than {max_length} tokens" if too_long else "it is empty"
        raise HeadEditError(f"The {name} set has nothing to use: {reason}.")
    return kept


def _encode_one(example: Any, encoder: Encoder, index: int, where: str) -> Encoded:
    if isinstance(example, Mapping) and "input_ids" in example:
        if "labels" not in example or len(example["labels"]) != len(example["input_ids"]):
            raise HeadEditError(f"{where}: has input_ids but not as many labels.")
        return {key: [int(i) for i in example[key]] for key in ("input_ids", "labels")}
    if encoder.tokenizer is None:
        raise HeadEditError(f"{where}: is text, and there is no tokenizer; give tokenizer=...")
    row = encoder(Example(index, where, *_conversation(example, where)))
    return {"input_ids": row["input_ids"], "labels": row["labels"]}


def _conversation(example: Any, where: str) -> tuple[list[Message], Format]:
    if isinstance(example, tuple | list) and [type(part) for part in example] == [str, str]:
        return [{"role": "user", "content": example[0]}, {"role": "assistant", "content": example[1]}], "response"
    return to_messages(example, where)
