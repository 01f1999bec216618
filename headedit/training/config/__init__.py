"""A training run as one strict YAML file: model, data, edits, recipe, training, logging; see ``RunConfig``."""

from headedit.training.config.model import ModelConfig
from headedit.training.config.reading import config_text, find_config, read_run, shipped_configs
from headedit.training.config.run import LoggingConfig, RunConfig

__all__ = [
    "LoggingConfig",
    "ModelConfig",
    "RunConfig",
    "config_text",
    "find_config",
    "read_run",
    "shipped_configs",
]
