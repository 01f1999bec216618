"""One conversation as token ids and labels: the loss is on the responses, and a response is never cut silently."""

import logging
from dataclasses import dataclass, field
from typing import Any, TypedDict

from headedit.data.batches import IGNORED
from headedit.data.chat import chat_text
from headedit.data.config import TooLong
from headedit.data.conversation import Tokens, conversation_tokens, default_template
from headedit.data.formats import is_learnt
from headedit.data.records import Conversation
from headedit.data.rows import Vocabulary, labelled_spans
from headedit.data.templates import Template
from headedit.data.tokens import special_ids
from headedit.errors import HeadEditError

logger = logging.getLogger(__name__)


class EncodingResult(TypedDict):
    """An encoded conversation, and what was done to it.

    Fields:
        input_ids: token ids; empty where the example is not used.
        labels: the same on the responses and what ends them, else ``IGNORED``.
        tokens: number of tokens before anything was cut.
        cut: number of tokens that were cut.
        ends: the last token of every response that is kept.
        lost: number of responses that were cut, always whole.
        template: the template; ``none`` for token ids.
        fault: why the example cannot be used, else empty.
        unrendered: number of responses whose ``reasoning_content`` the template leaves out.
        headless: number of responses that are not learnt, as the template renders them without the header of an answer.
        endless: whether the last response ends with no token that ends a turn or a text.
    """

    input_ids: list[int]
    labels: list[int]
    tokens: int
    cut: int
    ends: list[int]
    lost: int
    template: str
    fault: str
    unrendered: int
    headless: int
    endless: bool


@dataclass(frozen=True)
class Encoder:
    """Turns a conversation into tokens.

    Fields:
        tokenizer: the model's tokenizer.
        max_length: the most tokens; None for no limit.
        template: None for the default of the format.
        too_long: see ``DataConfig``; with ``fail`` an example is dropped here, and the caller raises.
        skip_malformed: return a fault for an example that cannot be used, instead of raising.
        vocabulary: the token ids that the model has.
    """

    tokenizer: Any
    max_length: int | None = None
    template: Template | None = None
    too_long: TooLong = "drop"
    skip_malformed: bool = False
    vocabulary: Vocabulary = field(default_factory=Vocabulary)

    def template_of(self, format: str) -> Template:
        """The template for examples of a format."""
        return self.template or default_template(format, self.tokenizer)

    def __call__(self, example: Conversation) -> EncodingResult:
        """Encodes a conversation.

        Raises:
            HeadEditError: the template refuses it, or it has a token id that the model does not have, and malformed
                examples are not skipped.
        """
        template = "none" if example.format == "input_ids" else self.template_of(example.format)
        try:
            tokens = self._tokens(example)
        except HeadEditError as error:
            if not self.skip_malformed:
                raise
            return _row(Tokens([], []), None, template, str(error))
        kept: Tokens | None = tokens
        if self.max_length is not None and len(tokens.ids) > self.max_length:
            bos = self.tokenizer.bos_token_id
            kept = cut_prompt(tokens, self.max_length, bos) if self.too_long == "cut_prompt" else None
        result = _row(tokens, kept, template)
        if template != "none":
            result["unrendered"] = self._unrendered(example, template)
            result["headless"] = sum(map(is_learnt, example.messages)) - len(tokens.spans)
            result["endless"] = template != "chatml" and tokens.ids[-1] not in special_ids(self.tokenizer)
        return result

    def _tokens(self, example: Conversation) -> Tokens:
        if example.format == "input_ids":
            assert example.encoded is not None
            self.vocabulary.check(example.encoded, example.where)
            ids, labels = example.encoded["input_ids"], example.encoded["labels"]
            return Tokens(ids, labelled_spans(labels), labels)
        tokens = conversation_tokens(example.messages, self.template_of(example.format), self.tokenizer, example.where)
        self.vocabulary.check_ids(tokens.ids, example.where)
        return tokens

    def _unrendered(self, example: Conversation, template: str) -> int:
        thoughts = [m["reasoning_content"].strip() for m in example.messages if "reasoning_content" in m]
        if not thoughts:
            return 0
        text = chat_text(self.tokenizer, example.messages, example.where) if template == "chat" else ""
        return sum(thought not in text for thought in thoughts)


def report_endless(count: int, name: str) -> None:
    """Logs how many examples end with no token that ends a turn or a text."""
    if count:
        logger.warning(
            "%d %s examples end with no end-of-text token, as the tokenizer has none: answers will not learn to end. "
            "Set tokenizer.eos_token to a token of the model, or use a template that ends its turns.",
            count,
            name,
        )


def cut_prompt(tokens: Tokens, max_length: int, bos_token_id: int | None) -> Tokens | None:
    """Keeps at most ``max_length`` tokens: the begin-of-text token, if there is one, and the last ones.

    An earlier response is kept or cut as a whole, and at least one token stays before each that is kept.

    Returns:
        The tokens that are left; None if not even the last response would be whole.
    """
    opening = tokens.ids[:1] if tokens.ids[:1] == [bos_token_id] else []
    begin = len(tokens.ids) - max_length + len(opening)
    for start, end in tokens.spans:
        if begin < end and start + len(opening) <= begin:
            begin = end
    spans = [(a - begin + len(opening), b - begin + len(opening)) for a, b in tokens.spans if a >= begin]
    if not spans:
        return None
    labels = None if tokens.labels is None else [IGNORED] * len(opening) + tokens.labels[begin:]
    return Tokens(opening + tokens.ids[begin:], spans, labels)


def _row(tokens: Tokens, kept: Tokens | None, template: str, fault: str = "") -> EncodingResult:
    ids, spans = (kept.ids, kept.spans) if kept is not None else ([], [])
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    if kept is not None and kept.labels is not None:
        labels = kept.labels
    return {
        "input_ids": ids,
        "labels": labels,
        "tokens": len(tokens.ids),
        "cut": len(tokens.ids) - len(ids) if ids else 0,
        "ends": [ids[end - 1] for _, end in spans],
        "lost": len(tokens.spans) - len(spans) if ids else 0,
        "template": template,
        "fault": fault,
        "unrendered": 0,
        "headless": 0,
        "endless": False,
    }
