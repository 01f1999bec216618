"""The examples of a run as token ids and labels."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from headedit.data.batches import Encoded
from headedit.data.encoding import encode
from headedit.data.rows import Vocabulary, is_encoded
from headedit.edits import HeadEdits
from headedit.hf.config import context_length
from headedit.hf.loading import load_tokenizer


def encode_examples(
    edits: HeadEdits,
    train: Iterable[Any],
    valid: Iterable[Any] | None,
    tokenizer: Any,
    max_length: int | None,
    progress: bool,
    skip_malformed: bool,
) -> tuple[Sequence[Encoded], Sequence[Encoded] | None, int]:
    """Encodes the examples of a run that are text.

    Args:
        edits: the handle, whose model says what tokens and lengths there are.
        train, valid: as given to ``headedit.fit``.
        tokenizer: for text; None for the model's own.
        max_length: largest number of tokens per example; None for the model's context length.
        progress: show progress bars.
        skip_malformed: drop and report examples that cannot be used.

    Returns:
        Encoded training and validation examples, and the token id for padding.

    Raises:
        HeadEditError: an example cannot be used, or there is no tokenizer.
    """
    train, valid = _listed(train), None if valid is None else _listed(valid)
    if tokenizer is None and any(not is_encoded(row) for row in [*train[:1], *(valid or [])[:1]]):
        tokenizer = load_tokenizer(getattr(edits.model.config, "_name_or_path", ""))
    vocabulary = Vocabulary.of(edits.model)
    length = context_length(edits.model) if max_length is None else max_length
    encoding = functools.partial(
        encode,
        tokenizer=tokenizer,
        max_length=length,
        vocabulary=vocabulary,
        skip_malformed=skip_malformed,
        progress=progress,
    )
    rows = encoding(train, name="training")
    return (
        rows,
        None if valid is None else encoding(valid, name="validation"),
        vocabulary.padding(tokenizer),
    )


def _listed(examples: Iterable[Any]) -> Sequence[Any]:
    return examples if isinstance(examples, Sequence) else list(examples)
