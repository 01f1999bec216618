"""Gated edits of attention heads: the gates, the edit of a site, the handle, storage."""

from headedit.edits.adapter import Gates
from headedit.edits.attach import attach
from headedit.edits.config import EditConfig
from headedit.edits.files.storage import load
from headedit.edits.handle import HeadEdits

__all__ = ["EditConfig", "Gates", "HeadEdits", "attach", "load"]
