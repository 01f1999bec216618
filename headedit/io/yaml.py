"""YAML read strictly: no key twice, and every fault with its file and line."""

import re
from pathlib import Path
from typing import Any

import yaml

from headedit.errors import HeadEditError


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise HeadEditError(f"line {line}: the key '{key}' is given twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


_EXPONENTS = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENTS, list("-+0123456789"))  # 1e-3 as in YAML 1.2


def read_yaml(path: Path) -> object:
    """Reads a YAML file; faults of syntax become a HeadEditError with file and line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise HeadEditError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise HeadEditError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise HeadEditError(f"{path}: line {line}: not valid YAML ({error.problem}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HeadEditError(f"{path}: not valid YAML ({error}).") from None
    except HeadEditError as error:
        raise HeadEditError(f"{path}: {error}") from None
