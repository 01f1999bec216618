"""Templates that are the same for every tokenizer: the text before a response, and what ends it.

Each splits a conversation into exchanges, (prompt, response) texts, where a prompt is everything between the end of one
response and the beginning of the next.
"""

from typing import Literal

from headedit.data.formats import Message
from headedit.errors import HeadEditError

Template = Literal["alpaca", "chatml", "chat", "plain"]
"""``chat`` is the tokenizer's own chat template, see ``headedit.data.chat``; the others are here."""

Exchange = tuple[str, str]

_SENTENCE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_INSTRUCTION = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA = f"{_SENTENCE}\n {_INSTRUCTION}"
"""The prompt of the JoLA paper (arXiv 2502.01179): the Alpaca template for instructions without input."""

CHATML_END = "<|im_end|>"


def exchanges(messages: list[Message], template: Template, where: str) -> list[Exchange]:
    """Splits a conversation into exchanges in ``alpaca``, ``chatml`` or ``plain``; responses without their ends.

    - ``alpaca``: the paper's prompt; a system text replaces its first sentence, and later turns have only their
      instruction and response.
    - ``chatml``: ``<|im_start|>role``, the text and ``<|im_end|>``, line by line.
    - ``plain``: prompt and response unchanged.

    Raises:
        HeadEditError: the turns do not fit the template.
    """
    if template == "chatml":
        return _chatml(messages)
    system, pairs = _alternating(messages, template, where)
    if template == "alpaca":
        leads = [f"{_SENTENCE if system is None else system}\n ", *["\n\n"] * (len(pairs) - 1)]
        return [
            (lead + _INSTRUCTION.format(instruction=user), response)
            for lead, (user, response) in zip(leads, pairs, strict=True)
        ]
    if system is not None or len(pairs) > 1:
        raise HeadEditError(
            f"{where}: 'plain' holds one prompt and one response; use another template, such as chatml."
        )
    return pairs


def _chatml(messages: list[Message]) -> list[Exchange]:
    found: list[Exchange] = []
    prompt = ""
    for message in messages:
        opening = f"<|im_start|>{message['role']}\n"
        if message["role"] == "assistant":
            found.append((prompt + opening, message["content"]))
            prompt = "\n"
        else:
            prompt += f"{opening}{message['content']}{CHATML_END}\n"
    return found


def _alternating(messages: list[Message], template: Template, where: str) -> tuple[str | None, list[Exchange]]:
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages if system is None else messages[1:]
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise HeadEditError(
                f"{where}: '{template}' needs user and assistant in turn, and found '{message['role']}' where "
                f"'{expected}' should be; use another template, such as chatml, or leave such records out "
                "(skip_malformed=True, --skip-broken)."
            )
    texts = [message["content"] for message in turns]
    return system, list(zip(texts[::2], texts[1::2], strict=True))
