"""Runs of the published projects as runs of headedit: JoLA's config.yaml, its fork's, and the flags of run_jola.py."""

from headedit.training.config.released.flags import read_flags
from headedit.training.config.released.translation import Line, Translation, read_released, released_sections

__all__ = ["Line", "Translation", "read_flags", "read_released", "released_sections"]
