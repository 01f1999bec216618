"""The examples that ``help()`` shows hold, as a user would type them, offline."""

import doctest

import pytest

import headedit


@pytest.mark.parametrize(
    "thing",
    [headedit.attach, headedit.load, headedit.fit, headedit.HeadEdits.route, headedit.evaluate],
    ids=["attach", "load", "fit", "route", "evaluate"],
)
def test_help_shows_an_example_that_holds(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__, globs={"headedit": headedit})
    runner = doctest.DocTestRunner()
    assert sum(len(test.examples) for test in found) > 3
    assert not any(doctest.SKIP in example.options for test in found for example in test.examples)
    for test in found:
        assert runner.run(test).failed == 0


def test_dir_of_a_handle_shows_what_users_call(llama):
    edits = headedit.attach(llama)
    shown = dir(edits)
    expected = {
        "gates",
        "set_head",
        "disable_adapter",
        "route",
        "save_pretrained",
        "merge_adapter",
        "detach",
        "strength",
    }
    assert expected <= set(shown)
    assert not [name for name in shown if name.startswith("_")]
    assert not {"check_acting", "refuse_contexts", "in_context", "applying", "writing"} & set(shown)
    assert all(hasattr(edits, name) for name in shown)
