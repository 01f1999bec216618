"""Puts a conversation into a template: its tokens with the spans of the responses, and its last prompt as text."""

from dataclasses import dataclass
from typing import Any

from headedit.data.chat import chat_text, chat_tokens
from headedit.data.formats import CONVERSATIONS, INSTRUCTIONS, Message, is_learnt, to_messages
from headedit.data.templates import CHATML_END, Exchange, Template, exchanges
from headedit.data.tokens import Rendered, Span, end_ids, exchange_tokens, text_ids
from headedit.errors import HeadEditError


@dataclass(frozen=True)
class Tokens:
    """A conversation as tokens.

    Fields:
        ids: token ids.
        spans: for every response that is learnt its first token, and the one after the token that ends it.
        labels: labels that are given; None for those of the spans.
    """

    ids: list[int]
    spans: list[Span]
    labels: list[int] | None = None


def default_template(format: str, tokenizer: Any) -> Template:
    """The default: ``alpaca`` for instructions, ``plain`` for prompts, and the tokenizer's or ``chatml`` for chats."""
    if format in INSTRUCTIONS:
        return "alpaca"
    if format in CONVERSATIONS:
        return "chat" if getattr(tokenizer, "chat_template", None) else "chatml"
    return "plain"


def conversation_tokens(messages: list[Message], template: Template, tokenizer: Any, where: str) -> Tokens:
    """Tokenises a conversation in a template; the end of a turn closes every response, end-of-text the last.

    Args:
        messages: the conversation, its last turn a response that is learnt.
        template: its name.
        tokenizer: the model's tokenizer.
        where: names the conversation in messages.

    Raises:
        HeadEditError: the conversation does not fit the template.
    """
    if template == "chat":
        return Tokens(*chat_tokens(tokenizer, messages, where))
    closing = text_ids(tokenizer, CHATML_END) if template == "chatml" else end_ids(tokenizer)
    ids, spans = exchange_tokens(tokenizer, exchanges(messages, template, where), closing)
    responses = [message for message in messages if message["role"] == "assistant"]
    return Tokens(ids, [span for span, message in zip(spans, responses, strict=True) if is_learnt(message)])


def last_exchange(messages: list[Message], template: Template, tokenizer: Any, where: str) -> Exchange:
    """Splits a conversation into all before its last response as text, for ``prompt_ids``, and that response.

    Raises:
        HeadEditError: the conversation does not fit the template.
    """
    if template == "chat":
        return Rendered(chat_text(tokenizer, messages[:-1], where, prompt=True)), messages[-1]["content"]
    *earlier, (prompt, response) = exchanges(messages, template, where)
    if not earlier:
        return prompt, response
    closing = CHATML_END if template == "chatml" else tokenizer.eos_token or ""
    return "".join(f"{p}{r}{closing}" for p, r in earlier) + prompt, response


def to_pair(record: object, where: str) -> tuple[str, str]:
    """Prompt and response of one record as texts, without a tokenizer.

    A record has ``prompt`` with ``response`` or ``completion``, used unchanged, or ``instruction`` with
    ``answer`` or ``output`` and perhaps ``input``, put into the Alpaca template.

    Raises:
        HeadEditError: the record is not of this form; ``where`` names it in the message.
    """
    messages, format = to_messages(record, where)
    if format in CONVERSATIONS:
        raise HeadEditError(
            f"{where}: holds a conversation, whose text depends on the tokenizer's template; read it with "
            "headedit.load_data, or give prompt and response."
        )
    return exchanges(messages, default_template(format, None), where)[0]
