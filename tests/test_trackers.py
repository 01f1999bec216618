"""Weights & Biases: what it is told, how it is left out, and that a run that could not log ends before it loads."""

import os
import sys
from types import SimpleNamespace

import pytest

from headedit import HeadEditError
from headedit.training.config import LoggingConfig
from headedit.training.config.trackers import check_trackers, tell_trackers, without_wandb


@pytest.fixture
def installed(monkeypatch):
    """A library wandb that says whether somebody is logged in; calls of its login."""
    calls = []

    def login():
        calls.append("login")
        if "WANDB_API_KEY" not in os.environ:
            raise RuntimeError("api_key not configured (no-tty)")

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=login))
    monkeypatch.setattr(
        "transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard", "wandb"]
    )
    return calls


def test_a_run_for_wandb_without_a_login_is_refused_with_the_ways_out(installed, monkeypatch):
    with pytest.raises(HeadEditError, match=r"not logged in \(api_key.*WANDB_MODE=offline; --no-wandb"):
        check_trackers(LoggingConfig(report_to="wandb"))
    monkeypatch.setenv("WANDB_API_KEY", "0")
    check_trackers(LoggingConfig(report_to=["wandb", "tensorboard"]))
    assert installed == ["login", "login"]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_nobody_is_asked_to_log_in_where_wandb_writes_to_disk_or_not_at_all(installed, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    check_trackers(LoggingConfig(report_to="wandb"))
    check_trackers(LoggingConfig(report_to="tensorboard"))
    assert installed == []


def test_the_message_for_a_missing_package_names_the_option(monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    with pytest.raises(HeadEditError, match=r"pip install wandb\. --no-wandb, or logging\.report_to: none"):
        check_trackers(LoggingConfig(report_to="wandb"))


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("wandb", "none"),
        ("none", "none"),
        (["wandb", "tensorboard"], ["tensorboard"]),
        ("all", ["tensorboard"]),
    ],
)
def test_logging_without_wandb_keeps_the_other_trackers_and_all_else(installed, given, left):
    found = without_wandb(LoggingConfig(report_to=given, every=3, tags=["a"]))
    assert found == LoggingConfig(report_to=left, every=3, tags=["a"])


def test_wandb_is_told_project_and_tags_of_each_run_unless_the_environment_names_others(installed, monkeypatch):
    tell_trackers(LoggingConfig(project="one", tags=["a", "b"]))
    assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_TAGS"]) == ("one", "a,b")
    tell_trackers(LoggingConfig(project="two"))
    assert os.environ["WANDB_PROJECT"] == "two"
    assert "WANDB_TAGS" not in os.environ
    tell_trackers(LoggingConfig())
    assert "WANDB_PROJECT" not in os.environ
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tell_trackers(LoggingConfig(project="one"))
    assert os.environ["WANDB_PROJECT"] == "mine"


@pytest.mark.parametrize("tag", ["", "a,b"])
def test_a_tag_that_wandb_could_not_read_is_refused(tag):
    with pytest.raises(HeadEditError, match=r"tags: found .* expected words without a comma"):
        LoggingConfig(tags=[tag])
