"""Preference training: LoFiT by DPO on pairs of a chosen and a rejected response, as it is published for TruthfulQA."""

from headedit.training.preferences.config import PreferenceConfig, read_preferences
from headedit.training.preferences.run import train_preferences

__all__ = ["PreferenceConfig", "read_preferences", "train_preferences"]
