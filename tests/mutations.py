"""Valid files turned into ones that anyone might hand in: bytes, plain data and tensors changed here and there.

A change is three whole numbers: what is done, where, and with what. Any numbers are a change, so that hypothesis can
draw them quickly and shrink them.
"""

import copy
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

Change = tuple[int, int, int]

CHANGES = st.lists(st.tuples(st.integers(0, 63), st.integers(0, 65535), st.integers(0, 65535)), min_size=1, max_size=4)

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    10**6,
    2**31,
    2**63,
    10**30,
    -(10**18),
    0.0,
    -0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "a",
    "0",
    "-1",
    "1e-3",
    "nan",
    "inf",
    "null",
    "\x00",
    "\ud83d",
    "\u202e",
    "é😀",
    "../../etc/passwd",
    "/nowhere",
    "~",
    "a/b",
    "{{",
    "{% for %}",
    "{{ x }}",
    "{layer}",
    "{}",
    "%s",
    "x" * 5000,
    "\n",
    "$",
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    {"a": 1},
    {"": ""},
    [{}],
    [[1, 2], [3]],
    list(range(50)),
    {"name": "x"},
    "train",
    "all",
    {"role": "user", "content": "a"},
    ["a", "b"],
    [0, 1],
    "default",
    "attention",
    "8:24",
    "::",
    "*",
    "cpu",
    "float16",
)
"""Values that stand where another is expected."""

TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"'",
    b"&a ",
    b"*a",
    b"<<: ",
    b"- ",
    b"? ",
    b"!!int ",
    b"!!binary ",
    b"!!set ",
    b"!!timestamp ",
    b"!!python/object:os.system ",
    b"---\n",
    b"|\n",
    b">\n",
    b"#",
    b"%YAML 9.9\n",
    b"null",
    b"true",
    b"NaN",
    b"1e999",
    b"-",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\\ud83d",
    b"\\u0000",
    b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80",
    b"0x",
    b"1:1",
    b"2001-01-01",
    b"=",
    b"@",
    b"`",
    b"\x85",
)
"""Bytes that a reader may stumble over."""


def mutate_bytes(payload: bytes, changes: Sequence[Change]) -> bytes:
    """The bytes with some of them replaced, removed, repeated, swapped or cut off."""
    for what, where, with_ in changes:
        at = where % (len(payload) + 1)
        length = 1 + with_ % 40
        token = TOKENS[with_ % len(TOKENS)]
        part = payload[at : at + length]
        payload = (
            payload[:at] + token + payload[at:],
            payload[:at] + token + payload[at + len(part) :],
            payload[:at] + payload[at + length :],
            payload[:at] + part * (2 + with_ % 3) + payload[at + length :],
            payload[:at],
            payload[:at] + bytes([with_ % 256]) + payload[at + 1 :],
            payload[at:] + payload[:at],
            payload[:at] + bytes(b ^ (1 << with_ % 8) for b in part[:1]) + payload[at + 1 :],
        )[what % 8]
    return payload


def mutate_data(data: Any, changes: Sequence[Change]) -> Any:
    """Plain data with some values replaced, removed, renamed, repeated or wrapped."""
    data = copy.deepcopy(data)
    for what, where, with_ in changes:
        places = list(_places(data))
        odd = copy.deepcopy(ODD[with_ % len(ODD)])
        if not places:
            return odd
        holder, key = places[where % len(places)]
        kind = what % 10
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            names = [*(k for h, k in places if isinstance(h, dict)), str(odd), odd if isinstance(odd, str) else "x"]
            holder[names[with_ % len(names)]] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(int(key), copy.deepcopy(holder[with_ % len(holder)]))
        elif kind == 3:
            other, name = places[with_ % len(places)]
            holder[key] = copy.deepcopy(other[name])
        elif kind == 4:
            holder[key] = [holder[key]]
        elif kind == 5 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * (with_ % 5 - 2) + (with_ % 7 - 3) / 2
        elif kind == 6 and isinstance(holder[key], str):
            text = holder[key]
            at = with_ % (len(text) + 1)
            holder[key] = text[:at] + str(odd)[:9] + text[at + what % 3 :]
        elif kind == 7 and isinstance(holder, dict):
            holder[str(odd)[:9]] = odd
        elif kind == 8:
            for _ in range(with_ % 120):
                holder[key] = [holder[key]] if what % 2 else {"a": holder[key]}
        else:
            holder[key] = odd
    return data


def mutate_safetensors(payload: bytes, changes: Sequence[Change]) -> bytes:
    """A safetensors file with its header or its numbers changed; JSON inside the metadata is changed as data, too."""
    (size,) = struct.unpack("<Q", payload[:8])
    header, numbers = json.loads(payload[8 : 8 + size]), payload[8 + size :]
    first, *others = changes
    if first[0] % 4 == 0:
        return mutate_bytes(payload, changes)
    if first[0] % 4 == 1:
        floats = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00")
        for _, where, with_ in changes:
            at = where % max(1, len(numbers) // 4) * 4
            numbers = numbers[:at] + floats[with_ % 4] + numbers[at + 4 :]
        return payload[: 8 + size] + numbers
    inner = {key: value for key, value in header.get("__metadata__", {}).items() if value[:1] in "{["}
    if inner and first[0] % 4 == 2:
        key = sorted(inner)[first[1] % len(inner)]
        header["__metadata__"][key] = dump_json(mutate_data(json.loads(inner[key]), others or changes))
    else:
        header = mutate_data(header, others or changes)
    text = dump_json(header).encode(errors="replace")
    return struct.pack("<Q", len(text)) + text + numbers


def dump_json(data: Any) -> str:
    """Data as JSON; what is nested too deeply to be written becomes null."""
    try:
        return json.dumps(data)
    except RecursionError:
        return "null"


def dump_yaml(data: Any) -> str:
    """Data as YAML, as JSON where PyYAML cannot write it."""
    try:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError, UnicodeError):
        return dump_json(data)


def mutate_text(text: str, changes: Sequence[Change], load: Callable[[str], Any], dump: Callable[[Any], str]) -> bytes:
    """A text file changed as bytes, or as the data that it holds."""
    if changes[0][0] % 3 == 0:
        return mutate_bytes(text.encode(), changes)
    return dump(mutate_data(load(text), changes)).encode(errors="surrogatepass")


def _places(data: Any, depth: int = 0) -> Any:
    if isinstance(data, dict | list) and depth < 12:
        for key in data if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from _places(data[key], depth + 1)
