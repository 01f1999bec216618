"""How a prompt and its response become tokens: one place, so that training and generation agree."""

from collections.abc import Mapping
from typing import Any

from headedit.errors import HeadEditError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n ### Instruction:\n{instruction}\n\n### Response:\n"
)
"""The prompt of the JoLA paper (arXiv 2502.01179): the Alpaca template for instructions without input."""

_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "answer"), ("instruction", "output"))


def to_pair(record: object, where: str) -> tuple[str, str]:
    """Prompt and response of one record.

    A record has ``prompt`` with ``response`` or ``completion``, used as they stand, or ``instruction`` with
    ``answer`` or ``output`` and perhaps ``input``, put into the Alpaca template.

    Raises:
        HeadEditError: the record is not of this form; ``where`` names it in the message.
    """
    if not isinstance(record, Mapping):
        raise HeadEditError(f"{where}: expected an object with named fields, found {type(record).__name__}.")
    for question, answer in _PAIRS:
        if question in record and answer in record:
            break
    else:
        known = " or ".join(f"{q}/{a}" for q, a in _PAIRS)
        raise HeadEditError(f"{where}: found the fields {', '.join(map(str, record))}; expected {known}.")
    for name in (question, answer, "input"):
        if not isinstance(record.get(name, ""), str):
            kind = type(record[name]).__name__
            raise HeadEditError(f"{where}: the field '{name}' holds {kind}, expected text.")
    prompt, response = record[question], record[answer]
    if not response.strip():
        raise HeadEditError(f"{where}: the field '{answer}' is empty, so there is nothing to learn from it.")
    if question == "instruction":
        given = record.get("input", "")
        instruction = f"{prompt}\n\n{given}" if given.strip() else prompt
        prompt = ALPACA.format_map({"instruction": instruction})
    return prompt, response


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt with the tokenizer's opening tokens, and without an end-of-text behind it."""
    ids: list[int] = list(tokenizer(prompt)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def response_ids(tokenizer: Any, prompt: str, response: str) -> list[int]:
    """Token ids of a response as it follows its prompt, closed by the end-of-text token.

    Where the text of both together does not begin with the prompt's own tokens (a merge across the seam),
    the response is tokenised alone, so that in any case the prompt is what generation will see.
    """
    head = prompt_ids(tokenizer, prompt)
    both = prompt_ids(tokenizer, prompt + response)
    if both[: len(head)] == head and len(both) > len(head):
        ids = both[len(head) :]
    else:
        ids = list(tokenizer(response, add_special_tokens=False)["input_ids"])
    eos = tokenizer.eos_token_id
    return ids if eos is None else [*ids, eos]
