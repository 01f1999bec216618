"""Reads the common forms of examples as conversations: lists of messages.

| format | fields |
|---|---|
| ``response`` | ``prompt``, ``response`` |
| ``completion`` | ``prompt``, ``completion`` |
| ``llm-adapters`` | ``instruction``, ``answer``, perhaps ``input`` |
| ``alpaca`` | ``instruction``, ``output``, perhaps ``input`` |
| ``messages`` | ``messages``: objects with ``role`` and ``content`` |
| ``sharegpt`` | ``conversations``: objects with ``from`` and ``value`` |

A record of any of them may have a text ``system``. The first format whose fields are all there is taken.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from headedit.errors import HeadEditError, suggest

Format = Literal["response", "completion", "llm-adapters", "alpaca", "messages", "sharegpt"]
Message = dict[str, str]
"""``role`` (``system``, ``user`` or ``assistant``) and ``content``."""

INSTRUCTIONS: tuple[Format, ...] = ("llm-adapters", "alpaca")
CONVERSATIONS: tuple[Format, ...] = ("messages", "sharegpt")

_FIELDS: dict[Format, tuple[str, ...]] = {
    "response": ("prompt", "response"),
    "completion": ("prompt", "completion"),
    "llm-adapters": ("instruction", "answer"),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}


def to_messages(record: object, where: str, format: Format | None = None) -> tuple[list[Message], Format]:
    """Reads the conversation in a record, and finds the record's format.

    Turns after the last response are left out, as there is nothing to learn from them.

    Args:
        record: an object with named fields.
        where: names the record in messages.
        format: the format that it must have; by default the first that fits.

    Raises:
        HeadEditError: the record is not of this format, or of no known one, or has no response or an empty one.
    """
    if not isinstance(record, Mapping):
        raise HeadEditError(f"{where}: expected an object with named fields, found {type(record).__name__}.")
    allowed: list[Format] = list(_FIELDS) if format is None else [format]
    for found in allowed:
        if all(name in record for name in _FIELDS[found]):
            break
    else:
        known = " or ".join("/".join(_FIELDS[name]) for name in allowed)
        raise HeadEditError(f"{where}: found the fields {', '.join(map(str, record))}; expected {known}.")
    if found in CONVERSATIONS:
        messages = _turns(record[_FIELDS[found][0]], _FIELDS[found][0], where)
    else:
        question, answer = _FIELDS[found]
        messages = _pair(record, question, answer, where)
    system = record.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        check_text(system, f"{where}: the field 'system'")
        messages.insert(0, {"role": "system", "content": system})
    return messages, found


def check_text(text: str, what: str) -> None:
    """Raises a HeadEditError for half of a surrogate pair, such as half of an emoji, which no tokenizer reads."""
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise HeadEditError(
            f"{what} holds half of a character (\\u{ord(found[0]):04x} at {found.start()}); was the text cut off?"
        )


def _pair(record: Mapping[str, Any], question: str, answer: str, where: str) -> list[Message]:
    given = record.get("input") if question == "instruction" else None
    for name, value in (
        (question, record[question]),
        (answer, record[answer]),
        ("input", "" if given is None else given),
    ):
        if not isinstance(value, str):
            raise HeadEditError(f"{where}: the field '{name}' holds {type(value).__name__}, expected text.")
        check_text(value, f"{where}: the field '{name}'")
    prompt, response = record[question], record[answer]
    if not response.strip():
        raise HeadEditError(f"{where}: the field '{answer}' is empty, so there is nothing to learn from it.")
    if given and given.strip():
        prompt = f"{prompt}\n\n{given}"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _turns(turns: object, field: str, where: str) -> list[Message]:
    if not isinstance(turns, list | tuple):
        raise HeadEditError(f"{where}: the field '{field}' holds {type(turns).__name__}, expected a list of turns.")
    messages = [_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(turns, start=1)]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise HeadEditError(f"{where}: the conversation has no response, so there is nothing to learn from it.")
    return messages


def _turn(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise HeadEditError(f"{where}: expected role/content or from/value, found {type(turn).__name__}.")
    for who, what in (("role", "content"), ("from", "value")):
        if who in turn and what in turn:
            break
    else:
        raise HeadEditError(
            f"{where}: found the fields {', '.join(map(str, turn))}; expected role/content or from/value."
        )
    role = _ROLES.get(turn[who]) if isinstance(turn[who], str) else None
    if role is None:
        raise HeadEditError(f"{where}: the {who} {turn[who]!r} is unknown.{suggest(turn[who], _ROLES)}")
    content = _joined(turn[what])
    if content is None:
        raise HeadEditError(f"{where}: the field '{what}' holds {type(turn[what]).__name__}, expected text.")
    check_text(content, f"{where}: the field '{what}'")
    if role == "assistant" and not content.strip():
        raise HeadEditError(f"{where}: the response is empty, so there is nothing to learn from it.")
    return {"role": role, "content": content}


def _joined(content: object) -> str | None:
    """Text, or the joined parts of a list of ``{"type": "text", "text": ...}``; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
