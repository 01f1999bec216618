"""Worlds whose answer is known: the embedded model with its tasks, and small models with edits planted in them.

The demo runs over the first, the bench of the recipes over both.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).resolve().parent / "model"
"""The embedded model: weights, tokenizer and training log, for ``AutoModelForCausalLM.from_pretrained``."""

__all__ = ["MODEL_FOLDER"]
