"""Examples of any form as token ids and labels: one encoder for training, evaluation, interpretation and reports.

An example is a (prompt, response) pair, a record of any form that ``headedit.data.formats`` names, conversations among
them, or a record with ``input_ids`` and ``labels``.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from headedit.data.batches import IGNORED, Encoded, StoredRows
from headedit.data.clock import Clock
from headedit.data.conversation import last_exchange
from headedit.data.encoder import Encoder, report_endless
from headedit.data.formats import check_text, to_messages
from headedit.data.records import Conversation
from headedit.data.rows import Vocabulary, is_encoded, read_row
from headedit.data.templates import CHATML_END, Template
from headedit.data.tokens import Span, TokenisedPrompt, text_ids, without_end
from headedit.errors import HeadEditError
from headedit.hf.config import context_length
from headedit.io.bars import tqdm

logger = logging.getLogger(__name__)

_REPORTED = {
    "unrendered": "%d responses of the %s set have a reasoning_content that the template leaves out.",
    "headless": "%d earlier responses of the %s set are not learnt, as the template renders them without their header.",
}


def encode(
    examples: Iterable[Any],
    tokenizer: Any,
    *,
    max_length: int | None,
    name: str,
    vocabulary: Vocabulary | None = None,
    skip_malformed: bool = False,
    progress: bool = True,
) -> Sequence[Encoded]:
    """Encodes a set of examples to train on: ``input_ids``, and ``labels`` on the responses and what ends them.

    Args:
        examples: examples of any form, in a list, a ``datasets.Dataset`` or a split of ``load_data``. Rows that
            ``load_data`` keeps on disk stay there.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        max_length: longer examples are dropped, and the log says how many; None for no limit.
        name: what to call the set in messages.
        vocabulary: the token ids that the model has; None for no limit.
        skip_malformed: drop and report examples that cannot be used, instead of stopping at the first.
        progress: show a bar.

    Raises:
        HeadEditError: the set is empty, an example is of another form, has an id that the model does not have, or
            nothing that carries a loss, and is not skipped; or none is left.
    """
    kept: list[Encoded] = []
    broken: list[str] = []
    chosen: list[int] = []
    too_long = 0
    seen: Counter[str] = Counter()
    vocabulary = vocabulary or Vocabulary()
    encoder = Encoder(tokenizer)
    stored = isinstance(examples, StoredRows)
    check_iterable(examples, f"The {name} set")
    for i, example in enumerate(tqdm(examples, desc=f"tokenising {name}", disable=not progress, leave=False)):
        where = f"{name} example {i + 1}"
        try:
            row = example if stored else encode_example(example, encoder, where, seen)
            vocabulary.check(row, where)
        except HeadEditError as error:
            if not skip_malformed:
                raise
            broken.append(str(error))
            continue
        if max_length is not None and len(row["input_ids"]) > max_length:
            too_long += 1
        elif stored:
            chosen.append(i)
        else:
            kept.append(row)
    if not kept and not chosen:
        raise HeadEditError(f"The {name} set has nothing to use: {_nothing(too_long, max_length, broken)}.")
    if too_long:
        logger.warning(
            "%d of %d %s examples are longer than %d tokens and are dropped; none was cut.",
            too_long,
            too_long + len(kept) + len(chosen),
            name,
            max_length,
        )
    for key, what in _REPORTED.items():
        if seen[key]:
            logger.warning(what, seen[key], name)
    report_endless(seen["endless"], name)
    if broken:
        logger.warning("%d %s examples cannot be used and are dropped; the first: %s", len(broken), name, broken[0])
    if isinstance(examples, StoredRows):
        return StoredRows(examples.dataset.select(chosen), examples.date) if broken or too_long else examples
    return kept


def _nothing(too_long: int, max_length: int | None, broken: list[str]) -> str:
    reasons = [f"all {too_long} examples are longer than {max_length} tokens"] if too_long else []
    reasons += [f"{len(broken)} examples cannot be used, the first: {broken[0].rstrip('.')}"] if broken else []
    return "; ".join(reasons) or "it is empty"


def encode_all(examples: Iterable[Any], tokenizer: Any, model: nn.Module, date: str | None = None) -> list[Encoded]:
    """Encodes examples to measure a model on: none is dropped, so that figures per example keep their order.

    Args:
        examples: as for ``encode``.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        model: the model that is to read them.
        date: the date that a chat template is told; None for today's.

    Raises:
        HeadEditError: there are none; one is of another form, has no labelled token after its first, is longer than
            the model's context, or has an id that the model does not know.
    """
    check_iterable(examples, "The set of examples")
    encoder = Encoder(tokenizer)
    with Clock(date):
        rows = [encode_example(example, encoder, f"Example {i + 1}") for i, example in enumerate(examples)]
    if not rows:
        raise HeadEditError("There is nothing to measure on: the set of examples is empty.")
    check_lengths([row["input_ids"] for row in rows], model)
    vocabulary = Vocabulary.of(model)
    for i, row in enumerate(rows):
        vocabulary.check(row, f"Example {i + 1}")
    return rows


def check_iterable(examples: Any, what: str) -> None:
    """Raises a HeadEditError for what cannot be a set of examples."""
    if isinstance(examples, str | bytes) or not (hasattr(examples, "__iter__") or hasattr(examples, "__getitem__")):
        raise HeadEditError(f"{what} is {type(examples).__name__}, expected a list of examples or a datasets.Dataset.")


def check_lengths(rows: Sequence[Sequence[int]], model: nn.Module, name: str = "Example") -> None:
    """Raises a ``HeadEditError`` for the first of the rows of token ids that is longer than the context.

    Args:
        rows: the rows.
        model: the model.
        name: what to call a row in the message, before its number.
    """
    longest = context_length(model)
    for i, ids in enumerate(rows):
        if longest is not None and len(ids) > longest:
            raise HeadEditError(
                f"{name} {i + 1} has {len(ids)} tokens, more than the model's context of {longest}. "
                "Shorten it or leave it out."
            )


def encode_example(example: Any, encoder: Encoder, where: str, seen: Counter[str] | None = None) -> Encoded:
    """One example of any form as token ids and labels; those of an encoded one, without the padding that it masks.

    Args:
        example: the example.
        encoder: turns text into tokens.
        where: names the example in messages.
        seen: counts what is done to examples, by the names of ``EncodingResult``.

    Raises:
        HeadEditError: the example is of another form, or text without a tokenizer; ``where`` names it.
    """
    if is_encoded(example):
        return read_row(example, where)
    result = encoder(conversation_of(example, encoder, where))
    if seen is not None:
        seen.update(unrendered=result["unrendered"], headless=result["headless"], endless=int(result["endless"]))
    return {"input_ids": result["input_ids"], "labels": result["labels"]}


def encode_for_generation(
    example: Any, tokenizer: Any, where: str, template: Template | None = None
) -> tuple[TokenisedPrompt, str]:
    """Prompt and expected response of one example: its last response, and all before it with the tokens of training.

    The expected response of token ids is their text without special tokens.

    Args:
        example: an example of any form.
        tokenizer: the model's tokenizer.
        where: names the example in messages.
        template: None for the default of the format; not used for token ids.

    Raises:
        HeadEditError: the example is of another form, or has no labelled token.
    """
    encoder = Encoder(tokenizer, template=template)
    row = encode_example(example, encoder, where)
    start, end = last_response(row, where)
    ids, response = row["input_ids"][:start], row["labels"][start:end]
    body = without_end(response, tokenizer)
    ending = response[len(body) : len(body) + 1]
    if is_encoded(example):
        return TokenisedPrompt(tokenizer.decode(ids), ids, ending), tokenizer.decode(body, skip_special_tokens=True)
    conversation = conversation_of(example, encoder, where)
    chosen = encoder.template_of(conversation.format)
    prompt, text = last_exchange(conversation.messages, chosen, tokenizer, where)
    return TokenisedPrompt(prompt, ids, text_ids(tokenizer, CHATML_END) if chosen == "chatml" else ending), text


def ids_to_last_token(example: Any, tokenizer: Any, where: str) -> list[int]:
    """Token ids up to the last token of an example's last response, without what ends it.

    ``input_ids`` are taken as they are, without the padding that an ``attention_mask`` masks.

    Raises:
        HeadEditError: the example is of another form, empty, or text without a tokenizer; ``where`` names it.
    """
    if is_encoded(example):
        ids = read_row(example, where, labelled=False)["input_ids"]
    else:
        encoder = Encoder(tokenizer)
        conversation = conversation_of(example, encoder, where)
        ids = without_closing(encoder(conversation)["input_ids"], encoder, conversation.format)
    if not ids:
        raise HeadEditError(f"{where}: is empty; there is no token to read the heads at.")
    return ids


def last_response(row: Encoded, where: str) -> Span:
    """Where the last response of an encoded example is: the last tokens in a row that have labels.

    Raises:
        HeadEditError: no token has a label.
    """
    labels = row["labels"]
    end = next((i + 1 for i in reversed(range(len(labels))) if labels[i] != IGNORED), 0)
    if not end:
        raise HeadEditError(f"{where}: has no labelled token, so it has no response.")
    return next((i + 1 for i in reversed(range(end)) if labels[i] == IGNORED), 0), end


def without_closing(ids: Sequence[int], encoder: Encoder, format: str) -> list[int]:
    """Token ids that end with a response, without what ends it, as the template of a format closes responses."""
    ids = without_end(ids, encoder.tokenizer)
    closing = text_ids(encoder.tokenizer, CHATML_END)
    if encoder.template_of(format) == "chatml" and ids[-len(closing) :] == closing:
        ids = ids[: -len(closing)]
    return ids


def conversation_of(example: Any, encoder: Encoder, where: str) -> Conversation:
    """The conversation in an example that is text.

    Raises:
        HeadEditError: the example is of another form, or there is no tokenizer; ``where`` names it.
    """
    if encoder.tokenizer is None:
        raise HeadEditError(f"{where}: is text, and there is no tokenizer; give tokenizer=...")
    if isinstance(example, tuple | list) and [type(part) for part in example] == [str, str]:
        for text in example:
            check_text(text, where)
        turns = [{"role": "user", "content": example[0]}, {"role": "assistant", "content": example[1]}]
        return Conversation(0, where, turns, "response")
    return Conversation(0, where, *to_messages(example, where))
