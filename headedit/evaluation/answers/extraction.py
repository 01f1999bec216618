"""Extracts the answer from a generated text: the option that it names, if it names exactly one.

The published parsers take the first capital letter from A to J, so that "Answer: C" gives A, or match words by case.
Here a statement ("the answer is (C)", "Answer: c") counts before anything else, then a text that is or opens with an
option, then the only option that is named. A refusal, and a text that names several, hold no answer: they are counted.
"""

import re
from collections.abc import Iterator, Sequence

_STATEMENT = (
    r"(?:answer|choice|option|solution|ending)(?:\s+(?:would\s+be|must\s+be|should\s+be|is|are))?\s*"
    r"(?:most\s+likely\s+|probably\s+|definitely\s+)?(?:(?:the\s+)?(?:option|choice|letter)\s*)?[:=\-]?\s*"
)
_OPEN, _CLOSE = r"[\s*_`\"'\[({<$]*", r"[\s*_`\"'\])}>$]*"
_JOINT = r"(?:or|and|/|,|&)"
_REFUSAL = re.compile(
    r"\b(?:i\s+(?:can(?:'|’)?t|can\s?not|could\s+not|am\s+(?:un|not\s+)able|won(?:'|’)?t|do(?:n(?:'|’)?t|\s+not)\s+know)"
    r"|i(?:'|’)m\s+(?:sorry|un|not\s+(?:able|sure))|i\s+am\s+(?:sorry|not\s+sure)|as\s+an\s+ai|unable\s+to|cannot\s+(?:answer|be)"
    r"|none\s+of\s+the|no\s+answer|not\s+enough\s+information|insufficient\s+information)",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"(?:\bnot|n['’]t|\bnever|\bneither|\bnor)\s+(?:the\s+)?[(\[*]*$", re.IGNORECASE)


def first_line(text: str) -> str:
    """The first line of a response without surrounding white space: what is compared."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def extract_option(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """The label of the one option that a response names; None where it names none, or several, or refuses.

    Args:
        text: the response; its first line counts.
        labels: what names each option: letters, words such as ``true`` or ``answer1``, or the options' texts.
        options: the text of each option, its label where it has no other.
    """
    line = first_line(text)
    letters = all(len(label) == 1 and label.isupper() for label in labels)
    stated = set(_stated(line, labels))
    if stated:
        return stated.pop() if len(stated) == 1 else None
    if _REFUSAL.search(line):
        return None
    return _opening(line, labels, options, letters) or _only_named(line, labels, letters)


def _stated(line: str, labels: Sequence[str]) -> Iterator[str]:
    """The labels that statements such as "the answer is (C)" give, with those joined to them by "or"."""
    label = _pattern(labels, bare_digits=True)
    listed = rf"{_OPEN}{label}{_CLOSE}(?:{_JOINT}{_OPEN}{label}{_CLOSE})*"
    boxed = rf"\\boxed\{{(?:\\text\{{)?{_OPEN}(?P<boxed>{label})"
    for match in re.finditer(rf"\b{_STATEMENT}(?P<stated>{listed})|{boxed}", line, re.IGNORECASE):
        named = match["stated"] or match["boxed"]
        article = named.strip() in ("a", "i") and re.match(r"[a-z]", line[match.end() :])
        if not article:  # "the answer is a cat" names no option
            yield from _found(named, labels, bare_digits=True)


def _opening(line: str, labels: Sequence[str], options: Sequence[str], letters: bool) -> str | None:
    """The option that the whole response is, or that it opens with as in "C. a cat" or "(c) a cat"."""
    plain = line.strip(" .*_`\"'").lower()
    for names in (labels, options):
        exact = [label for label, name in zip(labels, names, strict=True) if name.strip(" .").lower() == plain]
        if exact:
            return exact[0] if len(exact) == 1 else None
    if not letters:
        whole = re.fullmatch(rf"{_OPEN}{_pattern(labels, bare_digits=True)}{_CLOSE}[.!]?", line, re.IGNORECASE)
        return next(_found(line, labels, bare_digits=True)) if whole else None
    ending = rf"(?:[*_`\"']*(?:[).:\]]|$)|[*_`]+\s)(?!\s*{_JOINT})"
    opened = re.match(rf"{_OPEN}{_pattern(labels)}{ending}", line, re.IGNORECASE)
    return next(_found(opened[0], labels)) if opened else None


def _only_named(line: str, labels: Sequence[str], letters: bool) -> str | None:
    """The only label that occurs in the response, letters in brackets first."""
    named = set()
    if letters:  # small ones count in brackets alone, and neither an article nor a pronoun is a letter
        one = rf"({'|'.join(labels)})"
        named = {letter.upper() for letter in re.findall(rf"[(\[]\s*{one}\s*[)\]]", line, re.IGNORECASE)}
        named = named or set(re.findall(rf"(?<![\w'’]){one}(?![\w'’])(?!(?<=[AI])\s+(?!or\b|and\b)\w)", line))
    else:
        named = set(_found(line, labels))
    return named.pop() if len(named) == 1 else None


def _found(text: str, labels: Sequence[str], *, bare_digits: bool = False) -> Iterator[str]:
    """The labels that occur in a text, ignoring case, without those that it negates."""
    for match in re.finditer(_pattern(labels, bare_digits=bare_digits), text, re.IGNORECASE):
        if not _NEGATED.search(text[: match.start()]):
            yield next(label for label in labels if re.fullmatch(_spelled(label, bare_digits), match[0], re.IGNORECASE))


def _pattern(labels: Sequence[str], *, bare_digits: bool = False) -> str:
    """Any of the labels as a whole word; the longest first, as one may begin another."""
    longest_first = sorted(labels, key=len, reverse=True)
    return rf"(?<!\w)(?:{'|'.join(_spelled(label, bare_digits) for label in longest_first)})(?!\w)"


def _spelled(label: str, bare_digits: bool) -> str:
    """A pattern for a label: ``answer1`` is also written "answer 1" and, where only an answer can be, "1"."""
    numbered = re.fullmatch(r"([^\W\d]+)(\d+)", label)
    if not numbered:
        return re.escape(label)
    stem = rf"{re.escape(numbered[1])}[\s\-_#]*"
    return rf"(?:{stem})?{numbered[2]}" if bare_digits else rf"{stem}{numbered[2]}"
