"""How a file becomes records, a record a conversation, and that tokens: in one place, for training and evaluation."""

from headedit.text.conversation import Tokens, conversation_tokens, default_template, last_exchange, to_pair
from headedit.text.formats import Format, Message, to_messages
from headedit.text.sources import Row, read_rows
from headedit.text.templates import ALPACA, Template
from headedit.text.tokens import prompt_ids, response_ids

__all__ = [
    "ALPACA",
    "Format",
    "Message",
    "Row",
    "Template",
    "Tokens",
    "conversation_tokens",
    "default_template",
    "last_exchange",
    "prompt_ids",
    "read_rows",
    "response_ids",
    "to_messages",
    "to_pair",
]
