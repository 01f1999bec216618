"""Reads files as records, records as conversations, and conversations as tokens, for training and evaluation."""

from headedit.data.alternating import data_from_list
from headedit.data.config import DataConfig
from headedit.data.conversation import Tokens, conversation_tokens, default_template, last_exchange, to_pair
from headedit.data.formats import Format, Message, to_messages
from headedit.data.loading import Data, load_data
from headedit.data.records import Records, read_records
from headedit.data.sources import SourceRow, read_rows
from headedit.data.templates import ALPACA, Template
from headedit.data.tokens import prompt_ids, response_ids

__all__ = [
    "ALPACA",
    "Data",
    "DataConfig",
    "Format",
    "Message",
    "Records",
    "SourceRow",
    "Template",
    "Tokens",
    "conversation_tokens",
    "data_from_list",
    "default_template",
    "last_exchange",
    "load_data",
    "prompt_ids",
    "read_records",
    "read_rows",
    "response_ids",
    "to_messages",
    "to_pair",
]
