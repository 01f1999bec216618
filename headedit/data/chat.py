"""The tokens of a conversation in the tokenizer's own chat template, and exactly which of them are responses.

A response is what a rendering adds to the rendering of the turns before it with the header of an answer, which is what
generation is given. That is exact where the template is prefix-stable, so each rendering is checked to be a prefix of
the whole one. Where the template marks what the assistant says (``{% generation %}``), a response begins no earlier
than its mark; of a template that is not prefix-stable only the marks are used.

Where generation alone is given a header, such as one with empty thoughts, the last response stands behind it as in
generation, and earlier ones are not learnt: the history that generation is given has them without that header.
"""

import re
from itertools import pairwise
from typing import Any

from headedit.data.chat_templates import render_chat
from headedit.data.formats import Message, is_learnt
from headedit.data.tokens import Span, end_ids, special_ids, text_ids
from headedit.errors import HeadEditError

_SHOWN = 500  # characters of a message of the template
_MARKS = re.compile(r"\{%-?\s*generation\b")


def chat_text(tokenizer: Any, messages: list[Message], where: str, *, prompt: bool = False) -> str:
    """Renders a conversation as text; with ``prompt`` the header of an answer follows it.

    Raises:
        HeadEditError: the tokenizer has no template, or the template refuses the conversation.
    """
    return _applied(tokenizer, messages, where, prompt=prompt)[0]


def chat_tokens(tokenizer: Any, messages: list[Message], where: str) -> tuple[list[int], list[Span]]:
    """Token ids of a conversation, and where its responses are, each with the token that ends the turn.

    The template is rendered twice per response and the text tokenised once. Where a token would reach across the
    beginning of a response, the text is split there, so that every prompt has the tokens that generation will see.

    Raises:
        HeadEditError: the template refuses the conversation or is not prefix-stable, or the tokenizer gives no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise HeadEditError(
            "The spans of a chat template need a fast tokenizer (one with a tokenizer.json). Load one, or use another "
            "template, such as chatml."
        )
    special = special_ids(tokenizer)
    marked = _marked(tokenizer, messages, where, special)
    try:
        ids, spans = _located(tokenizer, *_rendered(tokenizer, messages, where), special)
    except HeadEditError:
        if marked is None:
            raise
        ids, spans = marked
    else:
        if marked is not None and marked[0] == ids:
            spans = [
                (max(start, mark) if mark < end else start, end)
                for (start, end), (mark, _) in zip(spans, marked[1], strict=True)
            ]
    ids = ids[: spans[-1][1]]
    if ids[-1] not in special:
        ids += end_ids(tokenizer)
        spans[-1] = (spans[-1][0], len(ids))
    return ids, spans


def _applied(tokenizer: Any, messages: list[Message], where: str, *, prompt: bool = False) -> tuple[str, list[Span]]:
    """A conversation as text, and the spans that its template marks, in characters."""
    if not getattr(tokenizer, "chat_template", None):
        raise HeadEditError("The tokenizer has no chat template; use another template, such as chatml or alpaca.")
    given = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        if _has_own_way(tokenizer):
            return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=prompt)), []
        if not messages:
            raise ValueError("the conversation is empty")
        template, tokens = tokenizer.get_chat_template(), tokenizer.special_tokens_map
        return render_chat(template, given, add_generation_prompt=prompt, **tokens)
    except Exception as error:  # Jinja's own, and whatever a template's filters raise
        raise HeadEditError(
            f"{where}: the tokenizer's chat template refuses the conversation "
            f"({type(error).__name__}: {str(error)[:_SHOWN]}). Use another template, such as chatml, or leave such "
            "records out (skip_malformed=True, --skip-broken)."
        ) from None


def _has_own_way(tokenizer: Any) -> bool:
    """Whether a tokenizer renders conversations by code of its own in place of transformers'."""
    from transformers import PreTrainedTokenizerBase

    shared = PreTrainedTokenizerBase.apply_chat_template
    return getattr(type(tokenizer), "apply_chat_template", None) is not shared


def _marked(
    tokenizer: Any, messages: list[Message], where: str, special: set[int]
) -> tuple[list[int], list[Span]] | None:
    """Tokens and spans by the template's marks; None unless it marks the whole text of each response."""
    if not _MARKS.search(str(getattr(tokenizer, "chat_template", None))):
        return None
    responses = [message for message in messages if message["role"] == "assistant"]
    whole, marks = _applied(tokenizer, messages, where)
    encoded = tokenizer(whole, add_special_tokens=False, verbose=False)
    ids = list(encoded["input_ids"])
    mask = [0, *_mask(encoded, len(ids), marks), 0]
    edges = [i - 1 for i in range(1, len(mask)) if mask[i] != mask[i - 1]]
    spans = [_closed(tokenizer, ids, span, special) for span in zip(edges[::2], edges[1::2], strict=True)]
    if len(spans) != len(responses) or not all(message["content"].strip() in whole for message in responses):
        return None
    return ids, [span for span, message in zip(spans, responses, strict=True) if is_learnt(message)]


def _mask(encoded: Any, tokens: int, marks: list[Span]) -> list[int]:
    """1 for every token that a mark reaches, as transformers gives them; 0 for the others."""
    mask = [0] * tokens
    for begin, end in marks:
        first, last = encoded.char_to_token(0, begin), encoded.char_to_token(0, end - 1)
        if first is None:
            break
        stop = last + 1 if last else tokens
        mask[first:stop] = [1] * max(0, stop - first)
    return mask


def _rendered(tokenizer: Any, messages: list[Message], where: str) -> tuple[str, list[Span]]:
    """The text, and the spans of its responses in characters, each with what ends the turn."""
    whole = chat_text(tokenizer, messages, where)
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if not is_learnt(message):
            continue
        before = chat_text(tokenizer, messages[:i], where, prompt=True)
        after = whole if i + 1 == len(messages) else chat_text(tokenizer, messages[: i + 1], where)
        start, content = len(before), message["content"].strip()
        if not (whole.startswith(before) and after.startswith(before)):
            earlier = chat_text(tokenizer, messages[:i], where)
            rest = _behind_header(whole, earlier, before, after, message["content"])
            if rest is None:
                raise _unstable(where)
            if i + 1 < len(messages):
                continue
            whole = after = before + rest
        if content not in after[start:]:
            raise _unstable(where)
        closing = after[start:].rpartition(content)[2]
        if whole.startswith(after):
            end = len(after)
        else:  # the last turn is rendered in another way than an earlier one, but its text and what ends it are there
            endings = [content + closing, content + closing.removesuffix(tokenizer.eos_token or "")]
            at, ending = next(((at, e) for e in endings if (at := whole.find(e, start)) >= 0), (-1, ""))
            if at < 0:
                raise _unstable(where)
            closing, end = ending[len(content) :], at + len(ending)
        if spans and start < spans[-1][1]:
            raise _unstable(where)
        blank = len(closing) - len(closing.rstrip())
        spans.append((start, end - blank if closing.strip() else end))
    return whole, spans


def _behind_header(whole: str, earlier: str, before: str, after: str, content: str) -> str | None:
    """A response and what ends its turn, where generation is given a longer header than a rendering has.

    Args:
        whole: the rendering of the conversation.
        earlier: that of the turns before the response.
        before: the same with the header of an answer, such as one that ends with empty thoughts.
        after: the rendering up to the response.
        content: the response.

    Returns:
        None where the renderings differ in more than the header.
    """
    if not all(text.startswith(earlier) for text in (whole, before, after)):
        return None
    places = [after.find(text, len(earlier)) for text in (content, content.strip())]
    at = next((at for at in places if at >= 0 and before.startswith(after[:at])), None)
    return None if at is None else after[at:]


def _unstable(where: str) -> HeadEditError:
    return HeadEditError(
        f"{where}: the tokenizer's chat template renders a conversation differently once it continues, so responses "
        "cannot be separated from prompts. Use another template, such as chatml, or a chat template with "
        "{% generation %} marks."
    )


def _located(tokenizer: Any, text: str, spans: list[Span], special: set[int]) -> tuple[list[int], list[Span]]:
    """Token ids of the text, and the spans in tokens instead of characters."""
    ids, found, torn = _mapped(tokenizer, text, spans, special)
    if torn:
        ids, found = [], []
        for begin, end in pairwise([0, *torn, len(text)]):
            part = [(a - begin, b - begin) for a, b in spans if begin <= a < end]
            new, spots, _ = _mapped(tokenizer, text[begin:end], part, special)
            found += [(len(ids) + a, len(ids) + b) for a, b in spots]
            ids += new
    return ids, found


def _mapped(tokenizer: Any, text: str, spans: list[Span], special: set[int]) -> tuple[list[int], list[Span], list[int]]:
    """Token ids, the spans in tokens, and where those begin whose prompt has other tokens on its own.

    A special token divides a text, so a prompt is compared from the last one on.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
    found: list[Span] = []
    torn: list[int] = []
    i = anchor = 0
    for start, end in spans:
        while i < len(ids) and starts[i] < start:
            anchor = i if ids[i] in special else anchor
            i += 1
        prompt = text_ids(tokenizer, text[starts[anchor] : start]) if start else []
        if ids[anchor : anchor + len(prompt)] == prompt:
            i = anchor + len(prompt)
        else:
            torn.append(start)
        first = i
        while i < len(ids) and starts[i] < end:
            i += 1
        found.append((first, i))
    return ids, found, torn


def _closed(tokenizer: Any, ids: list[int], span: Span, special: set[int]) -> Span:
    """The span up to the token that ends the turn, which a template's marks may leave out or pass."""
    start, end = span
    last = end
    while last > start + 1 and not tokenizer.decode(ids[last - 1]).strip():
        last -= 1
    if ids[last - 1] in special:
        return start, last
    return (start, end + 1) if end < len(ids) and ids[end] in special else span
