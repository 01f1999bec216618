"""Encodes a large set once and keeps it on disk, cached by ``datasets`` under a hash of what it was made from."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headedit.data.batches import ListedRows, StoredRows
from headedit.data.clock import moment
from headedit.data.encoder import Encoder, EncodingResult
from headedit.data.records import Conversation
from headedit.errors import HeadEditError
from headedit.io.bars import bars_of_libraries, tqdm
from headedit.io.optional import import_optional
from headedit.version import __version__

logger = logging.getLogger(__name__)

_WORTH_STORING = 1_000_000
"""Number of characters below which encoding takes less time than loading ``datasets``."""

_FORMAT = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_ENCODING = 3
"""To be raised with every change that gives the same examples other tokens or labels."""


class EncodedSet:
    """Encoded examples, in a list or in a ``datasets.Dataset``."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def column(self, name: str) -> list[Any]:
        """A field of every example, such as ``tokens``; see ``EncodingResult``."""
        return [row[name] for row in self._rows] if isinstance(self._rows, list) else list(self._rows[name])

    def select(self, indices: Sequence[int]) -> ListedRows | StoredRows:
        """``input_ids`` and ``labels`` of some of the examples."""
        if isinstance(self._rows, list):
            return ListedRows({key: self._rows[i][key] for key in ("input_ids", "labels")} for i in indices)
        return StoredRows(self._rows.select(indices).select_columns(["input_ids", "labels"]))


def encode_examples(examples: Sequence[Conversation], encoder: Encoder, *, name: str, progress: bool) -> EncodedSet:
    """Encodes every example, or reads it from the cache if the same was encoded before.

    The key is the text of the examples, the tokenizer, its chat template and the encoder's choices. Sets of less than a
    million characters, slow tokenizers, and machines without ``datasets`` or with its caching disabled, use a list in
    memory.
    """
    datasets = None
    if sum(example.length for example in examples) >= _WORTH_STORING and getattr(encoder.tokenizer, "is_fast", False):
        with contextlib.suppress(HeadEditError):
            datasets = import_optional("datasets", "the cache")
    if datasets is not None and datasets.is_caching_enabled():
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "headedit"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return EncodedSet(_stored(datasets, folder, examples, encoder, name, progress))
        except OSError as error:
            logger.warning("%s: the cache cannot be written (%s); the %s set stays in memory.", folder, error, name)
    return EncodedSet(
        [encoder(example) for example in tqdm(examples, desc=f"tokenising {name}", disable=not progress, leave=False)]
    )


def _stored(
    datasets: Any, folder: Path, examples: Sequence[Conversation], encoder: Encoder, name: str, progress: bool
) -> Any:
    def encoded(index: int) -> EncodingResult:
        return encoder(examples[index])

    number, text = datasets.Value("int32"), datasets.Value("string")
    kinds = {int: number, str: text, bool: datasets.Value("bool"), list[int]: datasets.List(number)}
    key = _key(examples, encoder)
    with bars_of_libraries(progress):
        return datasets.Dataset.from_dict({"index": range(len(examples))}).map(
            encoded,
            input_columns="index",
            remove_columns=["index"],
            features=datasets.Features({field: kinds[kind] for field, kind in EncodingResult.__annotations__.items()}),
            new_fingerprint=key,
            cache_file_name=str(folder / f"{key}.arrow"),
            writer_batch_size=100,
            desc=f"tokenising {name}",
        )


def _key(examples: Sequence[Conversation], encoder: Encoder) -> str:
    tokenizer = encoder.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # of the last call
        state.pop(passing, None)
    choices = [
        __version__,
        _ENCODING,
        state,
        tokenizer.chat_template,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        encoder.template,
        encoder.max_length,
        encoder.too_long,
        encoder.skip_malformed,
        encoder.vocabulary.read,
        *_dates(str(tokenizer.chat_template)),
    ]
    digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.where, example.format, example.messages, example.encoded]).encode())
    return digest.hexdigest()[:32]


def _dates(template: str) -> list[str]:
    """What a chat template may write of the moment that it is told."""
    if "strftime_now" not in template:
        return []
    told, formats = moment(), _FORMAT.findall(template)
    calls = template.count("strftime_now(")
    return [told.strftime(text) for _, text in formats] + ([told.isoformat()] if calls > len(formats) else [])
