"""The trackers of a run: which of them log, what they are given, and whether they can log before anything is loaded."""

import os
from dataclasses import replace
from typing import Any

from headedit.errors import HeadEditError
from headedit.io.optional import import_optional
from headedit.training.config.run import LoggingConfig

_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")
_PACKAGES = {"azure_ml": "azureml-mlflow"}
_told: dict[str, str] = {}  # the variables that were set here, for the run before
_NO_WANDB = "--no-wandb, or logging.report_to: none, trains without it"


def without_wandb(logging: LoggingConfig) -> LoggingConfig:
    """The same logging without Weights & Biases; of ``all`` trackers, the other installed ones are named."""
    from transformers.integrations import get_available_reporting_integrations

    named = [
        tracker
        for name in logging.trackers
        for tracker in (get_available_reporting_integrations() if name == "all" else [name])
    ]
    others: Any = [tracker for tracker in dict.fromkeys(named) if tracker != "wandb"]
    return replace(logging, report_to=others or "none")


def check_trackers(logging: LoggingConfig) -> None:
    """Raises a HeadEditError where a tracker could not log: its package is missing, or nobody is logged in at W&B.

    W&B asks for the key where there is a terminal.
    """
    from transformers.integrations import get_available_reporting_integrations

    available = {"all", "flyte", *get_available_reporting_integrations()}  # flyte is looked for by its own reporter
    for tracker in logging.trackers:
        if tracker not in available:
            package = _PACKAGES.get(tracker, tracker)
            hint = f" {_NO_WANDB}." if tracker == "wandb" else ""
            raise HeadEditError(f"logging: report_to: {tracker} needs a package: pip install {package}.{hint}")
    if "wandb" in logging.trackers and os.environ.get("WANDB_MODE", "").lower() not in _WITHOUT_LOGIN:
        try:
            import_optional("wandb", "logging: report_to: wandb").login()
        except Exception as error:  # of a class of wandb's
            raise HeadEditError(
                f"logging: report_to: wandb is not logged in ({error}). Run 'wandb login', set WANDB_API_KEY, or set "
                f"WANDB_MODE=offline; {_NO_WANDB}."
            ) from None


def tell_trackers(logging: LoggingConfig) -> None:
    """Sets the environment variables from which W&B reads project and tags; values that someone else set are left."""
    told = {"WANDB_PROJECT": logging.project, "WANDB_TAGS": ",".join(logging.tags)}
    for name, value in told.items():
        if os.environ.get(name) != _told.get(name):
            continue
        if value:
            os.environ[name] = _told[name] = value
        elif _told.pop(name, None) is not None:
            del os.environ[name]
