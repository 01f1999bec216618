"""The embedded model and its six tasks, on which every edit can be tried in a minute."""

from pathlib import Path

from headedit.demo import tasks

MODEL_FOLDER = Path(__file__).resolve().parent / "model"
"""The embedded model: weights, tokenizer and training log, for ``AutoModelForCausalLM.from_pretrained``."""

__all__ = ["MODEL_FOLDER", "tasks"]
