"""Examples as ``data_from_list`` of JoLA's code takes them: one list, instruction and answer in turn."""

from collections.abc import Iterable, Sequence
from typing import Any

from headedit.errors import HeadEditError


def is_alternating(examples: Any) -> bool:
    """Whether examples are one list of texts, rather than one of examples."""
    return isinstance(examples, list) and bool(examples) and all(isinstance(text, str) for text in examples)


def data_from_list(texts: Sequence[str], where: str = "texts") -> list[dict[str, str]]:
    """Records of ``instruction`` and ``answer``, for ``headedit.fit``, from a list of texts in turn.

    >>> data_from_list(["2 + 2 =", "4", "3 + 3 =", "6"])[1]
    {'instruction': '3 + 3 =', 'answer': '6'}

    Args:
        texts: an instruction, its answer, the next instruction, its answer, and so on.
        where: what to call them in messages.

    Raises:
        HeadEditError: it is not a list of texts, it is empty, or their number is odd.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable) or not is_alternating(list(texts)):
        raise HeadEditError(f"{where}: expected a list of texts, instruction and answer in turn.")
    if len(texts) % 2:
        raise HeadEditError(
            f"{where}: is a list of {len(texts)} texts, which are taken as instruction and answer in turn; the last "
            "one has no answer."
        )
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [{"instruction": instruction, "answer": answer} for instruction, answer in pairs]
