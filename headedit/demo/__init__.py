"""The embedded model, the script that trained it, and the demo run over it."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).resolve().parent / "model"
"""The embedded model: weights, tokenizer and training log, for ``AutoModelForCausalLM.from_pretrained``."""

__all__ = ["MODEL_FOLDER"]
