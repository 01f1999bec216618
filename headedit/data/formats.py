"""Reads the common forms of examples as conversations: lists of messages.

| format | fields |
|---|---|
| ``response`` | ``prompt``, ``response`` |
| ``completion`` | ``prompt``, ``completion``; texts, or both lists of turns as in TRL |
| ``llm-adapters`` | ``instruction``, ``answer``, perhaps ``input`` |
| ``alpaca`` | ``instruction``, ``output``, perhaps ``input`` |
| ``messages`` | ``messages``: objects with ``role`` and ``content`` |
| ``sharegpt`` | ``conversations``: objects with ``from`` and ``value`` |

A record of any of them may have a text ``system``. The first format whose fields are all there and not null is taken.
A turn of the assistant with ``weight`` 0, one that nothing comes before, and those of a conversation in ``prompt`` are
read but not learnt.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from headedit.errors import HeadEditError, suggest

Format = Literal["response", "completion", "llm-adapters", "alpaca", "messages", "sharegpt"]
Message = dict[str, str]
"""``role`` (``system``, ``user`` or ``assistant``) and ``content``.

``weight`` is "0" for a response that is not learnt; ``reasoning_content`` is the thoughts before a response.
"""

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

    Turns after the last response that is learnt are left out.

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
    filled = {name for name, value in record.items() if value is not None}
    fitting = [name for given in (filled, record) for name in allowed if all(key in given for key in _FIELDS[name])]
    if not fitting:
        known = " or ".join("/".join(_FIELDS[name]) for name in allowed)
        raise HeadEditError(f"{where}: found the fields {_names(record)}; expected {known}.")
    found = fitting[0]
    if found == "completion" and all(isinstance(record[name], list | tuple) for name in _FIELDS[found]):
        given, found = _FIELDS[found], "messages"
        messages = _turns([turn for name in given for turn in record[name]], " and ".join(given), where)
        _unlearn(messages, len(record["prompt"]), where)
    elif found in CONVERSATIONS:
        messages = _turns(record[_FIELDS[found][0]], _FIELDS[found][0], where)
    else:
        question, answer = _FIELDS[found]
        messages = _pair(record, question, answer, where)
    system = record.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        check_text(system, f"{where}: the field 'system'")
        messages.insert(0, {"role": "system", "content": system})
    return messages, found


NAMES = tuple(dict.fromkeys([*(name for names in _FIELDS.values() for name in names), "input", "system"]))
"""The names of all fields that a record of any format may have."""


def rename_fields(record: object, fields: Mapping[str, str], where: str) -> object:
    """A record in which fields of other names have the names of a format.

    Args:
        record: an object with named fields. Of the others, only ``input`` and ``system`` are kept.
        fields: names of a format's fields, and what they are called in the record.
        where: names the record in messages.

    Raises:
        HeadEditError: the record has no such field, or is no object.
    """
    if not isinstance(record, Mapping):
        raise HeadEditError(f"{where}: expected an object with named fields, found {type(record).__name__}.")
    for name, own in fields.items():
        if own not in record:
            raise HeadEditError(
                f"{where}: has no field '{own}', which 'fields' takes as '{name}'; found {_names(record)}."
            )
    kept = {name: record[name] for name in ("input", "system") if name in record and name not in fields.values()}
    return {**kept, **{name: record[own] for name, own in fields.items()}}


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
    if messages[:1] and messages[0]["role"] == "assistant":
        messages[0]["weight"] = "0"
    _end_at_last_learnt(messages, where)
    return messages


def is_learnt(message: Message) -> bool:
    """Whether a turn is a response that is learnt."""
    return message["role"] == "assistant" and message.get("weight") != "0"


def _unlearn(messages: list[Message], count: int, where: str) -> None:
    """Marks the responses among the first turns as not learnt."""
    for message in messages[:count]:
        if message["role"] == "assistant":
            message["weight"] = "0"
    _end_at_last_learnt(messages, where)


def _end_at_last_learnt(messages: list[Message], where: str) -> None:
    responses = sum(message["role"] == "assistant" for message in messages)
    while messages and not is_learnt(messages[-1]):
        messages.pop()
    if not messages:
        why = "has no response" if not responses else "has no response that follows a turn and has a weight above 0"
        raise HeadEditError(f"{where}: the conversation {why}, so there is nothing to learn from it.")


def _turn(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise HeadEditError(f"{where}: expected role/content or from/value, found {type(turn).__name__}.")
    for who, what in (("role", "content"), ("from", "value")):
        if turn.get(who) is not None and turn.get(what) is not None:
            break
    else:
        pairs = (("role", "content"), ("from", "value"))
        who, what = next(((a, b) for a, b in pairs if a in turn and b in turn), ("", ""))
    if not who:
        raise HeadEditError(f"{where}: found the fields {_names(turn)}; expected role/content or from/value.")
    role = _ROLES.get(turn[who]) if isinstance(turn[who], str) else None
    if role is None:
        raise HeadEditError(f"{where}: the {who} {turn[who]!r} is unknown.{suggest(turn[who], _ROLES)}")
    content = _joined(turn[what])
    if content is None:
        raise HeadEditError(f"{where}: the field '{what}' holds {type(turn[what]).__name__}, expected text.")
    check_text(content, f"{where}: the field '{what}'")
    if role == "assistant" and not content.strip():
        raise HeadEditError(f"{where}: the response is empty, so there is nothing to learn from it.")
    message = {"role": role, "content": content}
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise HeadEditError(f"{where}: the weight is {weight!r}, expected 0 for a turn that is not learnt, or 1.")
    if weight == 0 and role == "assistant":
        message["weight"] = "0"
    thoughts = turn.get("reasoning_content")
    if thoughts is not None:
        if not isinstance(thoughts, str):
            raise HeadEditError(
                f"{where}: the field 'reasoning_content' holds {type(thoughts).__name__}, expected text."
            )
        check_text(thoughts, f"{where}: the field 'reasoning_content'")
        if thoughts.strip():
            message["reasoning_content"] = thoughts
    return message


def _names(record: Mapping[Any, Any]) -> str:
    """The names of the fields, with half characters escaped."""
    return ", ".join(str(name).encode("utf-8", "backslashreplace").decode() for name in record)


def _joined(content: object) -> str | None:
    """Text, or the joined parts of a list of ``{"type": "text", "text": ...}``; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
