"""Runs the tokens that all prompts of a task begin with once: a template's heading, or examples before the question.

Every row continues a copy of their cache, where it is a plain one of keys and values. The first batch is compared with
passes of whole rows.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from headedit.data.batches import token_embeddings
from headedit.evaluation.answers.plain_cache import Checked, agree, is_plain, selected
from headedit.evaluation.answers.rows import Row, RowReader

logger = logging.getLogger(__name__)

_FEWEST_TOKENS = 16
_FEWEST_PROMPTS = 4


class CommonPrefix(Checked):
    """Reads rows that all begin with the same tokens.

    Args:
        reader: runs rows.
        prompts: token ids of the prompts, one or more; a row is one of them with the beginning of an option.

    Fields:
        tokens: how many tokens are run once; 0 where that would save little.
    """

    def __init__(self, reader: RowReader, prompts: Sequence[list[int]]) -> None:
        self._reader = reader
        shared = beginning(prompts)
        enough = len(prompts) >= _FEWEST_PROMPTS and len(shared) >= _FEWEST_TOKENS
        self._prefix = shared if enough and "past_key_values" in reader.takes else []
        self._cache: Any = None
        super().__init__(bool(self._prefix))

    @property
    def tokens(self) -> int:
        """How many tokens are run once."""
        return len(self._prefix) if self.works is not False else 0

    def read(self, rows: Sequence[Row]) -> list[list[float]]:
        """The log-probability of each read of each row."""
        found = self.tried(lambda: self.continued(rows), lambda found: self._right(rows, found))
        return self._reader.read(rows, use_cache=False)[0] if found is None else found

    def continued(self, rows: Sequence[Row]) -> list[list[float]] | None:
        """What ``read`` gives, unchecked; None where the cache cannot be copied."""
        width = len(self._prefix)
        if self._cache is None:
            last = Row(self._prefix, [(width - 1, self._prefix[0], 0)], width + 1)  # every prompt goes on
            self._cache = getattr(self._reader.read([last], use_cache=True)[2], "past_key_values", None)
            if not is_plain(self._cache):
                return None
        device = token_embeddings(self._reader.model).device
        copied = selected(self._cache, torch.zeros(len(rows), dtype=torch.long, device=device))
        past = torch.ones(len(rows), width, dtype=torch.long, device=device)
        rest = [
            Row(
                row.tokens[width:],
                [(at - width, token, k) for at, token, k in row.reads],
                row.prompt,
                [at - width for at in row.follows],
            )
            for row in rows
        ]
        return self._reader.read(rest, past=past, past_key_values=copied, use_cache=True)[0]

    def _right(self, rows: Sequence[Row], found: list[list[float]]) -> bool:
        """Whether the first and the last row have the values that they have alone."""
        for i in sorted({0, len(rows) - 1}):
            values, _, out = self._reader.read([rows[i]], use_cache=False)
            if not all(agree(a, b, out.logits.dtype) for a, b in zip(found[i], values[0], strict=True)):
                logger.warning(
                    "%s answers differently after the cache of what all prompts begin with, so each is run whole.",
                    type(self._reader.model).__name__,
                )
                return False
        return True


def beginning(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, but for the last of the shortest."""
    first, last = min(prompts), max(prompts)
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differing, len(first))][: min(map(len, prompts)) - 1]
