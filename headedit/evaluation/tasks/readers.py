"""Readers: give the records of a data set, as it is published, the plain fields that a task's prompt names.

- ``truthfulqa`` (Lin, Hilton, Evans, ACL 2022, arXiv 2109.07958), as CSV or as on the hub: ``question``; ``best``, the
  best answer; ``correct``, all correct ones; ``mc1`` and ``mc2``, the best one or all of them with the incorrect ones.
- ``mquake`` (Zhong et al., EMNLP 2023, arXiv 2305.14795): ``fact``, the changed one; ``question``, the first of its
  phrasings; ``answers``, the answer after the change and its aliases.
- ``clutrr`` (Sinha et al., EMNLP 2019, arXiv 1908.06177): ``text``, the story; ``first`` and ``second``, the two
  persons; ``relation``, of the second to the first.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from headedit.errors import HeadEditError

Reader = Literal["truthfulqa", "mquake", "clutrr"]
Fields = Mapping[str, Any]


def read_fields(reader: str, record: Fields, where: str) -> dict[str, Any]:
    """A record with the fields that a reader makes, and its own.

    Raises:
        HeadEditError: the record is none of this data set.
    """
    try:
        return {**record, **_READERS[reader](record)}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        found = ", ".join(map(str, record))
        raise HeadEditError(
            f"{where}: is no record of {reader} ({type(error).__name__}: {error}); found the fields {found[:300]}."
        ) from None


def _truthfulqa(record: Fields) -> Fields:
    if "mc1_targets" in record:
        question = record["question"]
        best, incorrect = _parted(record["mc1_targets"])
        correct, wrong = _parted(record["mc2_targets"])
    else:
        question, best = record["Question"], [_closed(record["Best Answer"])]
        correct, wrong = _answers(record["Correct Answers"]), _answers(record["Incorrect Answers"])
        incorrect = wrong
    correct = correct if best[0] in correct else [best[0], *correct]
    if not wrong or not incorrect:
        raise ValueError("it has no incorrect answer")
    return {
        "question": question,
        "best": best[0],
        "correct": correct,
        "mc1": _once(best[:1] + incorrect),
        "mc2": _once(correct + wrong),
    }


def _mquake(record: Fields) -> Fields:
    change = record["requested_rewrite"][0]
    fact = f"{change['prompt'].replace('{}', change['subject'])} {change['target_new']['str']}"
    answers = [record["new_answer"], *record["new_answer_alias"]]
    return {"fact": fact, "question": record["questions"][0], "answers": answers}


def _clutrr(record: Fields) -> Fields:
    query = record["query"]
    if isinstance(query, str):  # as Python writes two names in brackets
        query = [single or double for single, double in re.findall(r"'([^']*)'|\"([^\"]*)\"", query)]
    first, second = query
    story = record["clean_story"] if record.get("clean_story") else record["story"]
    return {
        "text": re.sub(r"[\[\]]", "", story),
        "first": first.strip(),
        "second": second.strip(),
        "relation": record["target_text"],
    }


def _parted(targets: Fields) -> tuple[list[str], list[str]]:
    """The choices that are right, and those that are wrong."""
    pairs = list(zip(targets["choices"], targets["labels"], strict=True))
    return [text for text, right in pairs if right], [text for text, right in pairs if not right]


def _answers(text: str) -> list[str]:
    """The answers in a field of the CSV file, each with a full stop, as TruthfulQA's own code reads them."""
    return [_closed(part) for part in text.split(";") if part.strip()]


def _closed(answer: str) -> str:
    text = answer.strip()
    return text if text.endswith(".") else f"{text}."


def _once(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


_READERS: dict[str, Callable[[Fields], Fields]] = {"truthfulqa": _truthfulqa, "mquake": _mquake, "clutrr": _clutrr}
