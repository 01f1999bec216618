"""The version of headedit, in one place."""

__version__ = "0.1.0"
