"""YAML read strictly and within bounds: no key twice, no alias that multiplies, and every fault with its line."""

import re
from pathlib import Path
from typing import Any

import yaml

from headedit.errors import HeadEditError

_LARGEST = 2**18
_DEEPEST = 50
_MOST_VALUES = 10_000
_LONGEST_NUMBER = 40
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, and what a small text could blow up: aliases, depth and long numbers.

    An alias counts as many values as it stands for, so ordinary anchors and merge keys are read.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}  # values that a node stands for, by its id; of open nodes none
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.anchors:
            target = self.anchors[event.anchor]
            if id(target) not in self._sizes:
                raise _at(event, f"the alias *{event.anchor} stands for something that contains it")
            self._count(self._sizes[id(target)], event)
            return super().compose_node(parent, index)
        self._count(1, event)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _at(event, f"nested more than {_DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._check_scalar(node)
            self._sizes[id(node)] = 1 + sum(self._sizes[id(inner)] for inner in _inner(node))
        return node

    def _count(self, values: int, place: Any) -> None:
        self._values += values
        if self._values > _MOST_VALUES:
            raise _at(place, f"stands for more than {_MOST_VALUES:,} values with its aliases, too many for settings")

    def _check_scalar(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.ScalarNode):
            return
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise _at(node, f"the number {node.value[:12]}… is too long")
        if "\0" in node.value or not (node.value.isascii() or _is_unicode(node.value)):
            raise _at(node, "holds a NUL or half of a surrogate pair, which no text has")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise _at(key_node, f"the key '{key[:60]}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_EXPONENTS = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENTS, list("-+0123456789"))  # 1e-3 as in YAML 1.2


def read_yaml(path: Path) -> object:
    """Reads a YAML file.

    Raises:
        HeadEditError: it cannot be read, is not YAML, or is larger or deeper than a file of settings can be; the
            message has the file and the line.
    """
    try:
        with path.open("rb") as file:
            payload = file.read(_LARGEST + 1)
        text = payload.decode()
    except OSError as error:
        raise HeadEditError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        if len(payload) <= _LARGEST:
            raise HeadEditError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
        text = ""
    if len(payload) > _LARGEST:
        raise HeadEditError(f"{path}: has more than {_LARGEST:,} bytes, too many for a file of settings.")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> object:
    """Reads YAML text.

    Args:
        text: the text.
        where: the name of the file or option, put in front of every message.

    Raises:
        HeadEditError: it is not YAML, gives a key twice, or stands for more than a file of settings can; the message
            has the line.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except HeadEditError as error:
        raise HeadEditError(f"{where}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise HeadEditError(f"{where}: line {line}: not valid YAML ({error.problem}).") from None
    except Exception as error:  # PyYAML's own, and those of its constructors for a value that its tag does not fit
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise HeadEditError(f"{where}: not valid YAML ({first[:200]}).") from None


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []


def _is_unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _at(place: Any, fault: str) -> HeadEditError:
    return HeadEditError(f"line {place.start_mark.line + 1}: {fault}.")
