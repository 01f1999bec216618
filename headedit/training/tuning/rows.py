"""Examples of which prompts are learned too, and not the responses alone."""

from collections.abc import Sequence
from typing import overload

from headedit.data.batches import Encoded


class LearnsPrompts(Sequence[Encoded]):
    """Encoded examples of which every token is learned.

    Args:
        rows: the examples.
    """

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> "LearnsPrompts": ...

    def __getitem__(self, index: int | slice) -> "Encoded | LearnsPrompts":
        if isinstance(index, slice):
            return LearnsPrompts(self._rows[index])
        row = self._rows[index]
        return {**row, "labels": list(row["input_ids"])}
