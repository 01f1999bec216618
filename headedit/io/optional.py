"""Libraries that only a part of headedit needs, imported by the function that uses them."""

from importlib import import_module
from typing import Any

from headedit.errors import HeadEditError


def import_optional(name: str, purpose: str) -> Any:
    """Imports an optional library.

    Args:
        name: of the module, such as ``pyarrow.parquet``.
        purpose: what needs it, the start of the message: ``A Parquet file``.

    Raises:
        HeadEditError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise HeadEditError(f"{purpose} needs the package {package}: pip install {package}.") from None
