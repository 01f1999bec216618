"""Which tokens of a pass an edit acts on: those of prompts, generated ones, or the last token of each prompt.

In every row the tokens of the prompt come first, so that one column says it all: where the generated tokens begin. The
last token of the prompt is the one in front of it, whose output predicts the first generated token.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from headedit.errors import HeadEditError

Positions = Literal["all", "prompt", "generated", "last_prompt"]
"""The tokens that an edit acts on."""

POSITIONS: tuple[str, ...] = get_args(Positions)

IN_WORDS = {
    "all": "all tokens",
    "prompt": "prompt tokens",
    "generated": "generated tokens",
    "last_prompt": "the last token of each prompt",
}

Boundary = int | Tensor
"""The column of a pass at which its generated tokens begin, one for all rows or [batch]; not above 0 where all are
generated, and above the number of tokens where the prompt goes on in a later pass, or never ends."""


def check_everywhere(positions: str, what: str) -> None:
    """Raises a HeadEditError where edits act on some tokens alone.

    Args:
        positions: those of the edits.
        what: what cannot be done then, such as "they cannot be merged".
    """
    if positions != "all":
        raise HeadEditError(
            f"These edits act on {IN_WORDS[positions]} alone (positions={positions!r}), and weights act on every "
            f"token, so {what}. Keep the edits next to the model: save_pretrained, and headedit.load on the base model."
        )


class PassTokens:
    """The tokens of one pass.

    Args:
        batch: rows of the pass.
        tokens: tokens of each row.
        boundary: finds where generated tokens begin, from what was known when the pass began; called at most once, and
            only if an edit asks. It raises a HeadEditError where that cannot be told.
    """

    def __init__(self, batch: int, tokens: int, boundary: Callable[[], Boundary]) -> None:
        self.batch, self.tokens = batch, tokens
        self._find = boundary
        self._boundary: Boundary | None = None
        self._found: dict[tuple[object, torch.device | None], bool | Tensor] = {}

    def close(self) -> None:
        """Forgets what the pass was called with; what was found stays."""
        self._find = _forgotten

    @torch.no_grad()
    def acting(self, positions: str | Sequence[str], device: torch.device) -> bool | Tensor:
        """Which tokens an edit acts on: all, none, or a mask [batch, tokens] on a device.

        Args:
            positions: those of the edit; or of the edit of each row, where a batch may hold each row several times, one
                after the other.
            device: of the mask.

        Raises:
            HeadEditError: it cannot be told.
        """
        key = positions if isinstance(positions, str) else tuple(positions)
        found = self._found.get((key, device))
        if found is None:
            if self._boundary is None:
                self._boundary = self._find()
            found = self._kind(key) if isinstance(key, str) else self._by_row(key)
            if isinstance(found, Tensor):
                found = found.to(device)
            self._found[key, device] = found
        return found

    def _by_row(self, positions: Sequence[str]) -> Tensor:
        each = self.batch // len(positions)
        whole = {kind: self._kind(kind) for kind in set(positions)}
        like = next((mask for mask in whole.values() if isinstance(mask, Tensor)), None)
        masks = {
            kind: mask
            if isinstance(mask, Tensor)
            else torch.full((self.batch, self.tokens), mask, device=None if like is None else like.device)
            for kind, mask in whole.items()
        }
        rows = [masks[kind][i * each : (i + 1) * each] for i, kind in enumerate(positions)]
        return torch.cat(rows)

    def _kind(self, positions: str) -> bool | Tensor:
        if positions == "all":
            return True
        ends = self._boundary
        if isinstance(ends, int):
            if positions == "prompt" and not 0 < ends < self.tokens:
                return ends > 0
            if positions == "generated" and not 0 < ends < self.tokens:
                return ends <= 0
            if positions == "last_prompt" and (self.tokens == 1 or not 0 < ends <= self.tokens):
                return ends == 1
            ends = torch.tensor([ends])
        assert ends is not None
        column, end = torch.arange(self.tokens, device=ends.device), ends.view(-1, 1)
        if positions == "prompt":
            mask = column < end
        elif positions == "generated":
            mask = column >= end
        else:
            mask = column == end - 1
        return mask.expand(self.batch, self.tokens)


def acts_on(found: bool | Tensor, z: Tensor, tokens: PassTokens, heads: int, path: str) -> Tensor | None:
    """The mask of acting tokens in the shape of a site's input; None for all of them.

    Args:
        found: what ``PassTokens.acting`` gave; not False.
        z: the site's input.
        tokens: the tokens of the pass.
        heads: how many of its last dimensions the heads fill.
        path: the site's module, for the message.

    Raises:
        HeadEditError: the input has other tokens than the pass.
    """
    if found is True:
        return None
    assert isinstance(found, Tensor)
    if z.shape[:-heads] != (tokens.batch, tokens.tokens):
        raise HeadEditError(
            f"{path} was given {tuple(z.shape)} in a pass over {tokens.batch} rows of {tokens.tokens} tokens, so it "
            "cannot be told which of them are prompt: its edit can act on all tokens only, EditConfig(positions='all')."
        )
    per_vector = (..., *(None,) * heads)
    return found.view(*found.shape, *(1,) * heads) if found.is_contiguous() else found[per_vector]


def _forgotten() -> Boundary:
    raise HeadEditError(
        "A layer is recomputed that did not ask in its pass which tokens are prompt, so it cannot be told any more. "
        "Run each backward pass with the adapter that was active in its pass."
    )
