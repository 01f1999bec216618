"""The header of a safetensors file: a text of ours in it, and what follows it.

A file has eight bytes with the length of the header, little-endian; the header, a JSON object with a shape, dtype and
place of each tensor, and texts under ``__metadata__``; and the tensors.
"""

import json
import struct

from headedit.io.json import read_json

_KEY = "config"  # the only key, since safetensors writes several in random order
_METADATA = "__metadata__"
_LARGEST = 2**24  # bytes of a header


def split_payload(payload: bytes) -> tuple[bytes, bytes]:
    """The header of a file, and what follows it.

    Raises:
        ValueError: there is no header of the length that the file states.
    """
    if len(payload) < 8:
        raise ValueError("it is too short for a header")
    (length,) = struct.unpack_from("<Q", payload)
    if length > min(_LARGEST, len(payload) - 8):
        raise ValueError(f"its header would have {length:,} bytes")
    return payload[8 : 8 + length], payload[8 + length :]


def header_text(payload: bytes) -> str | None:
    """Our text in the header of a file; None where it has none.

    Raises:
        ValueError: the header cannot be read.
    """
    try:
        header = read_json(split_payload(payload)[0])
    except RecursionError:
        raise ValueError("its header is nested without end") from None
    metadata = header.get(_METADATA) if isinstance(header, dict) else None
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    return text if isinstance(text, str) else None


def with_text(payload: bytes, text: str) -> bytes:
    """A file with our text in its header, and the same tensors."""
    header, data = split_payload(payload)
    content = {**json.loads(header), _METADATA: {_KEY: text}}
    written = json.dumps(content, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)  # so that the tensors are aligned
    return struct.pack("<Q", len(written)) + written + data
