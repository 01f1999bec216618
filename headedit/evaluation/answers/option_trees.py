"""Log-likelihoods of all options of a prompt from one row: the prompt, then the options as a tree of tokens.

Options that begin alike share the tokens of their beginning, and a mask of four dimensions lets each token see the
prompt and the tokens of its own option alone. Edits that act on some tokens alone are read otherwise. A pass is
compared with one of a whole input before others follow, so that a model that does not obey such a mask, or takes no
position ids, is noticed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from headedit.edits.site_edit import SiteEdit
from headedit.evaluation.answers.padding import takes_padding
from headedit.evaluation.answers.plain_cache import Checked, agree, is_plain
from headedit.evaluation.answers.rows import Row, RowReader
from headedit.evaluation.answers.shared_prompts import Question, longest_alone
from headedit.hf.config import context_length

Read: TypeAlias = Callable[[Sequence[Row]], list[list[float]] | None]
_IMPLEMENTATIONS = {"eager", "sdpa"}
_MASK = 2**24
"""Numbers that the mask of a pass may hold."""


class OptionTrees(Checked):
    """Scores options with one row per question, for as long as the model is seen to allow it.

    Args:
        reader: runs rows.
        read: gives the log-probability of each read of rows; by ``reader``, or after a common beginning. None
            where it cannot.
        tokens: tokens per pass, with padding.
    """

    def __init__(self, reader: RowReader, read: Read, tokens: int) -> None:
        self._reader, self._read, self._tokens = reader, read, tokens
        self._longest = context_length(reader.model)
        implementation = getattr(getattr(reader.model, "config", None), "_attn_implementation", None)
        takes = {"position_ids", "attention_mask", "past_key_values"} <= reader.takes and takes_padding(
            reader.model, "right"
        )
        by_place = any(isinstance(module, SiteEdit) and module.positions != "all" for module in reader.model.modules())
        super().__init__(takes and implementation in _IMPLEMENTATIONS and not by_place)

    def scores(self, questions: Sequence[Question]) -> list[list[float]] | None:
        """The log-likelihood of each option of each question; None where they cannot be read so."""
        if self.works is False:
            return None
        rows = [_tree(*question) for question in questions]
        if self._longest is not None and any(len(row.tokens) > self._longest for row in rows):
            return None
        return self.tried(lambda: self._scores(questions, rows), lambda found: self._right(questions, found))

    def _scores(self, questions: Sequence[Question], rows: Sequence[Row]) -> list[list[float]] | None:
        found = [[0.0] * len(tails) for _, tails in questions]
        for chosen in self._passes([len(row.tokens) for row in rows]):
            values = self._read([rows[i] for i in chosen])
            if values is None:
                return None
            for i, row_values in zip(chosen, values, strict=True):
                for (_, _, option), value in zip(rows[i].reads, row_values, strict=True):
                    found[i][option] += value
        return found

    def _passes(self, widths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of the rows of each pass, the longest first."""
        order = sorted(range(len(widths)), key=lambda i: -widths[i])
        while order:
            width = widths[order[0]]
            most = max(1, min(self._tokens // width, _MASK // width**2))
            yield order[:most]
            order = order[most:]

    def _right(self, questions: Sequence[Question], found: list[list[float]]) -> bool:
        """Whether the longest option of the longest question, the last in its row, has the value that it has alone.

        The model's cache must also hold keys and values alone: what a state holds besides is not masked, and may be too
        little to be seen in one value.
        """
        longest = max(range(len(questions)), key=lambda i: len(questions[i][0]) + max(map(len, questions[i][1])))
        option, alone, out = longest_alone(self._reader, questions[longest], use_cache=True)
        plain = is_plain(getattr(out, "past_key_values", None))
        return plain and agree(found[longest][option], alone, out.logits.dtype)


def _tree(head: list[int], tails: Sequence[list[int]]) -> Row:
    """A row of a prompt and its options, the longest last, without the last token of each."""
    tokens, follows = list(head), []
    reads: list[tuple[int, int, int]] = []
    places: dict[tuple[int, int], int] = {}
    for option in sorted(range(len(tails)), key=lambda k: len(tails[k])):
        at = len(head) - 1
        for k, token in enumerate(tails[option]):
            reads.append((at, token, option))
            if k == len(tails[option]) - 1:
                break
            if (at, token) not in places:
                places[at, token] = len(tokens)
                tokens.append(token)
                follows.append(at)
            at = places[at, token]
    return Row(tokens, reads, len(head), follows)
