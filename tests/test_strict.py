"""Plain data becomes dataclasses, or an error that names the place, what was found and what was expected."""

from dataclasses import dataclass
from typing import Literal

import pytest

from headedit import HeadEditError
from headedit.io.strict import build, read_assignments


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    count: int | None = None
    share: float = 0.5
    mode: Literal["fast", "exact"] = "fast"
    inner: Inner | list[Inner] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    table: dict[str, int] | None = None
    on: bool = False


def test_a_mapping_that_fits_becomes_a_dataclass():
    data = {"name": "a", "count": 3, "share": 1, "inner": [{"size": 2}], "pair": [1, 2], "table": {"x": 1}, "on": True}
    assert build(Outer, data, "f") == Outer("a", 3, 1.0, "fast", [Inner(2)], (1.0, 2.0), {"x": 1}, True)
    assert isinstance(build(Outer, {"name": "a", "share": 1}, "f").share, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"f: expected a mapping of keys to values, found \[\] \(list\)\."),
        ({}, r"f: the key 'name' is missing\."),
        ({"name": "a", "cuont": 1}, r"f: unknown key 'cuont'\. Did you mean 'count'\?"),
        ({"name": "a", 7: 1}, r"f: unknown key 7\. Possible: count, inner"),
        ({"name": 1}, r"f: name: found 1 \(int\), expected a text\."),
        ({"name": "a", "count": "x"}, r"f: count: found 'x' \(str\), expected a whole number or nothing\."),
        ({"name": "a", "count": True}, r"f: count: found True \(bool\), expected a whole number or nothing\."),
        ({"name": "a", "share": "0.1"}, r"f: share: found '0\.1' \(str\), expected a number\."),
        ({"name": "a", "mode": "exat"}, r"f: mode: .* expected one of fast, exact\. Did you mean 'exact'\?"),
        ({"name": "a", "inner": {"siez": 1}}, r"f: inner: unknown key 'siez'\. Did you mean 'size'\?"),
        ({"name": "a", "inner": [{"size": 1}, {}]}, r"f: inner\[1\]: the key 'size' is missing\."),
        ({"name": "a", "pair": [1]}, r"f: pair: found \[1\] \(list\), expected 2 values\."),
        ({"name": "a", "table": {"x": "y"}}, r"f: table: .*expected"),
        ({"name": "a", "on": 1}, r"f: on: found 1 \(int\), expected true or false\."),
    ],
)
def test_a_value_that_does_not_fit_is_named(data, message):
    with pytest.raises(HeadEditError, match=message):
        build(Outer, data, "f")


def test_messages_shorten_long_values():
    with pytest.raises(HeadEditError) as caught:
        build(Outer, {"name": list(range(1000))}, "f")
    assert len(str(caught.value)) < 150


def test_assignments_are_read_as_yaml():
    given = ["epochs=5", "vector_lr=1e-2", "mode=exact", "patience=null", "on=true"]
    assert read_assignments(given) == {"epochs": 5, "vector_lr": 0.01, "mode": "exact", "patience": None, "on": True}


@pytest.mark.parametrize("setting", ["epochs", "epochs=[1"])
def test_an_assignment_that_cannot_be_read_is_an_error(setting):
    with pytest.raises(HeadEditError, match=r"expected name=value|cannot be read as a value"):
        read_assignments([setting])
