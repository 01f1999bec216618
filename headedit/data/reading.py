"""Which tokens of an example the heads are read at: the last one, those of its responses, or all."""

from typing import Any, Literal

from headedit.data.batches import IGNORED, Encoded
from headedit.data.encoder import Encoder
from headedit.data.encoding import conversation_of, encode_example, ids_to_last_token, without_closing
from headedit.data.formats import check_text
from headedit.data.rows import is_encoded, labelled_spans, read_row
from headedit.data.tokens import Span, prompt_ids
from headedit.errors import HeadEditError

Tokens = Literal["last", "response", "all"]
"""``last``: the last token of the last response, or of a text. ``response``: the tokens of the responses that are
learnt. ``all``: both, and the prompt. What ends a response, and the token that begins every text, are never read."""


def tokens_to_read(example: Any, tokenizer: Any, where: str, tokens: Tokens) -> Encoded:
    """One example as token ids up to the last token that is read, with labels on those that are read.

    Args:
        example: a text, a (prompt, response) pair, or a record of any form that ``headedit.fit`` takes. Of records with
            ``input_ids`` all are taken as they are; the tokens of their responses are those with ``labels``.
        tokenizer: the model's tokenizer; None is enough for a record with ``input_ids``.
        where: names the example in messages.
        tokens: which tokens are read.

    Raises:
        HeadEditError: the example is of another form, empty, text without a tokenizer, or has no such token.
    """
    text = isinstance(example, str)
    ids = _ids_of_text(example, tokenizer, where) if text else ids_to_last_token(example, tokenizer, where)
    if tokens == "response":
        spans = [] if text else _responses(example, tokenizer, where)
        if not spans:
            what = "a text without a prompt" if text else "without a labelled token"
            raise HeadEditError(
                f"{where}: is {what}, so it has no response to read at. Give (prompt, response) pairs, or "
                "tokens='last' or 'all'."
            )
        ids = ids[: spans[-1][1]]
    elif tokens == "last":
        spans = [(len(ids) - 1, len(ids))]
    else:
        begins = not is_encoded(example) and len(ids) > 1 and ids[0] == tokenizer.bos_token_id
        spans = [(int(begins), len(ids))]
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return {"input_ids": ids, "labels": labels}


def _ids_of_text(text: str, tokenizer: Any, where: str) -> list[int]:
    if tokenizer is None:
        raise HeadEditError(f"{where}: is text, and there is no tokenizer; give tokenizer=...")
    check_text(text, where)
    if not text.strip():
        raise HeadEditError(f"{where}: is an empty text; there is no token to read the heads at.")
    return prompt_ids(tokenizer, text)


def _responses(example: Any, tokenizer: Any, where: str) -> list[Span]:
    """Where the responses are that are learnt, without what ends each."""
    if is_encoded(example):
        return labelled_spans(read_row(example, where)["labels"]) if example.get("labels") is not None else []
    encoder = Encoder(tokenizer)
    format = conversation_of(example, encoder, where).format
    row = encode_example(example, encoder, where)
    bodies = []
    for start, end in labelled_spans(row["labels"]):
        body = without_closing(row["input_ids"][start:end], encoder, format)
        bodies.append((start, start + len(body)))
    return [(start, end) for start, end in bodies if end > start]
