"""Data of a run: files and datasets to conversations, conversations to tokens and labels; see ``load_data``."""

from headedit.training.data.config import DataConfig
from headedit.training.data.loading import Data, load_data
from headedit.training.data.records import Records, read_records

__all__ = ["Data", "DataConfig", "Records", "load_data", "read_records"]
