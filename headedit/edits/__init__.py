"""Gated edits of attention heads: the gates, the edit of a site, the handle, storage."""

from headedit.edits.attach import attach
from headedit.edits.config import EditConfig
from headedit.edits.handle import HeadEdits
from headedit.edits.module import Gates
from headedit.edits.storage import load

__all__ = ["EditConfig", "Gates", "HeadEdits", "attach", "load"]
