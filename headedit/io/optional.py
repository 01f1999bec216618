"""Libraries that only some of headedit needs, loaded by the function that uses them."""

from importlib import import_module
from typing import Any

from headedit.errors import HeadEditError


def library(name: str, purpose: str) -> Any:
    """An optional library, or a HeadEditError that says how to get it."""
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise HeadEditError(f"{purpose} needs the package {package}: pip install {package}.") from None
