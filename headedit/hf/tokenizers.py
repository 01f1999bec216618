"""What may be given as a tokenizer."""

from os import PathLike
from typing import Any

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.loading import load_tokenizer
from headedit.io.describe import describe


def as_tokenizer(given: Any) -> Any:
    """The tokenizer that was given: loaded where it is a name or a folder, that of a processor; None for None.

    Raises:
        HeadEditError: it is something else, or there is no tokenizer of that name.
    """
    if isinstance(given, str | PathLike):
        return load_tokenizer(str(given))
    inner = getattr(given, "tokenizer", given)
    if given is not None and (isinstance(inner, nn.Module | type) or not callable(inner)):
        raise HeadEditError(
            f"tokenizer: found {describe(given)}, expected the model's tokenizer, its name or its folder."
        )
    return inner
