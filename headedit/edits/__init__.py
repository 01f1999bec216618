"""Gated edits of attention heads: the gates, the edit of a site, the handle, saved files, merging."""

from headedit.edits.adapter import Gates
from headedit.edits.attach import attach, handle, load
from headedit.edits.config import EditConfig
from headedit.edits.handle import HeadEdits

__all__ = ["EditConfig", "Gates", "HeadEdits", "attach", "handle", "load"]
