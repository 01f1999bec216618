"""What is measured on a GPU: tests, costs, decoding and memory, in parts that can be ended and resumed."""

from headedit.bench.gpu.page import page
from headedit.bench.gpu.runner import LIMITS, run_parts

__all__ = ["LIMITS", "page", "run_parts"]
