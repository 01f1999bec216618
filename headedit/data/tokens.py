"""Tokenises prompts and responses; a prompt is tokenised as generation will see it."""

from collections.abc import Sequence
from typing import Any

from headedit.data.templates import Exchange

Span = tuple[int, int]
"""Tokens from the first to before the second."""
_AT_ONCE = 256
"""Questions whose texts are tokenised in one call."""


class Rendered(str):
    """A text that a chat template made: it already has its opening tokens, if any."""

    __slots__ = ()


class TokenisedPrompt(str):
    """A prompt as text, with the token ids that a model was trained on.

    Fields:
        ids: token ids of the prompt.
        ending: token ids that end a response to it.
    """

    ids: list[int]
    ending: list[int]

    def __new__(cls, text: str, ids: Sequence[int] = (), ending: Sequence[int] = ()) -> "TokenisedPrompt":
        """The prompt."""
        made = super().__new__(cls, text)
        made.ids, made.ending = list(ids), list(ending)
        return made


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt with the tokenizer's opening tokens, and without the ones that it puts after a text.

    An end-of-text token that the prompt itself holds stays, at its end too. A ``Rendered`` prompt gets no opening
    tokens, one that begins with the begin-of-text token gets no second one, and a ``TokenisedPrompt`` has its ids.
    """
    if isinstance(prompt, TokenisedPrompt):
        return list(prompt.ids)
    return _ids(tokenizer, [prompt], opening=not isinstance(prompt, Rendered))[0]


def response_ids(tokenizer: Any, prompt: str, response: str) -> list[int]:
    """Token ids of a response as it follows its prompt, closed by the end-of-text token.

    Where the tokens of both together do not begin with the prompt's own tokens (a merge across the seam), and after a
    ``TokenisedPrompt``, the response is tokenised alone, so that the prompt is always what generation will see.
    """
    if isinstance(prompt, TokenisedPrompt):
        return _unended(tokenizer, _ids(tokenizer, [response], opening=False)[0]) + end_ids(tokenizer)
    opening = not isinstance(prompt, Rendered)
    return _exchange_ids(tokenizer, prompt, response, opening=opening)[1] + end_ids(tokenizer)


def continuation_ids(
    tokenizer: Any, questions: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[list[int], list[list[int]]]]:
    """Token ids of prompts and of the responses to each, as ``prompt_ids`` and ``response_ids`` give them.

    The responses are not closed. All texts are tokenised in a few calls.
    """
    found: list[tuple[list[int], list[list[int]]]] = []
    for start in range(0, len(questions), _AT_ONCE):
        found += _continuations(tokenizer, questions[start : start + _AT_ONCE])
    return found


def end_ids(tokenizer: Any) -> list[int]:
    """The end-of-text token, if the tokenizer has one."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def special_ids(tokenizer: Any) -> set[int]:
    """The tokens that are not text: those that the tokenizer calls special, and the end-of-text token."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(end_ids(tokenizer))


def without_end(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Token ids without the special tokens at their end, such as end-of-text, and white space between these."""
    special = special_ids(tokenizer) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
    end = last = len(ids)
    while last and (ids[last - 1] in special or (last < len(ids) and not tokenizer.decode([ids[last - 1]]).strip())):
        last -= 1
        end = last if ids[last] in special else end
    return list(ids[:end])


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def exchange_tokens(tokenizer: Any, exchanges: Sequence[Exchange], closing: list[int]) -> tuple[list[int], list[Span]]:
    """Token ids of a conversation, and where its responses are, each with what closes it; the last with end-of-text.

    Each exchange is tokenised separately, so the time grows with the length, not with the number of turns.
    """
    ids: list[int] = []
    spans: list[Span] = []
    for prompt, response in exchanges:
        head, tail = _exchange_ids(tokenizer, prompt, response, opening=not spans)
        start = len(ids) + len(head)
        ids += head + tail + closing
        spans.append((start, len(ids)))
    end = end_ids(tokenizer)
    if end and ids[-1:] != end:
        ids += end
        spans[-1] = (spans[-1][0], len(ids))
    return ids, spans


def _continuations(
    tokenizer: Any, questions: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[list[int], list[list[int]]]]:
    texts: dict[bool, list[str]] = {True: [], False: []}
    for prompt, responses in questions:
        if isinstance(prompt, TokenisedPrompt):
            texts[False] += responses
        else:
            texts[not isinstance(prompt, Rendered)] += [prompt, *(prompt + response for response in responses)]
    coming = {opening: iter(_ids(tokenizer, some, opening=opening)) for opening, some in texts.items() if some}
    found: list[tuple[list[int], list[list[int]]]] = []
    for prompt, responses in questions:
        if isinstance(prompt, TokenisedPrompt):
            found.append((list(prompt.ids), [_unended(tokenizer, next(coming[False])) for _ in responses]))
            continue
        rows = coming[not isinstance(prompt, Rendered)]
        head = next(rows)
        tails = [_after(tokenizer, head, next(rows), response) for response in responses]
        found.append((head, tails))
    return found


def _exchange_ids(tokenizer: Any, prompt: str, response: str, *, opening: bool) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, and of the response after it without the end-of-text that it may end with."""
    head, both = _ids(tokenizer, [prompt, prompt + response], opening=opening)
    return head, _after(tokenizer, head, both, response)


def _after(tokenizer: Any, head: list[int], both: list[int], response: str) -> list[int]:
    """Token ids of a response: those of ``both`` after the prompt's, or its own where the prompt's do not begin it."""
    if both[: len(head)] == head and len(both) > len(head):
        return _unended(tokenizer, both[len(head) :])
    return _unended(tokenizer, _ids(tokenizer, [response], opening=False)[0])


def _unended(tokenizer: Any, ids: list[int]) -> list[int]:
    """Token ids of a response before the end-of-text tokens at its end."""
    end = len(ids)
    while end and ids[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return ids[:end]


def _ids(tokenizer: Any, texts: list[str], *, opening: bool) -> list[list[int]]:
    """Token ids of texts, with or without the tokenizer's opening tokens, and without what it puts after a text.

    Special tokens that are part of a text stay where they are.
    """
    plain = [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    if not opening:
        return plain
    found = []
    whole = tokenizer(texts, verbose=False)["input_ids"]
    for inner, ids in zip(plain, map(list, whole), strict=True):
        ids = _unclosed(tokenizer, inner, ids)
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids.pop(0)
        found.append(ids)
    return found


def _unclosed(tokenizer: Any, inner: list[int], ids: list[int]) -> list[int]:
    """Token ids without what the tokenizer put after those of the text, ``inner``."""
    if inner:
        for start in range(len(ids) - len(inner) + 1):
            if ids[start : start + len(inner)] == inner:
                return ids[: start + len(inner)]
    kept = len(inner) - len(_unended(tokenizer, inner))  # end-of-text tokens of the text itself
    while len(ids) - len(_unended(tokenizer, ids)) > kept:
        ids = ids[:-1]
    return ids
