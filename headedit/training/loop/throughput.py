"""Speed and memory use of a run, for its logs."""

import time
from typing import Any

import psutil
import torch
from torch import Tensor


class Throughput:
    """Counts tokens per second over all processes, padding included, and reads the memory in use."""

    def __init__(self, processes: int, device: torch.device) -> None:
        self._processes, self._device = processes, device
        self._tokens, self._since = 0, time.perf_counter()

    def count(self, inputs: dict[str, Any]) -> None:
        """Counts the tokens of a batch, without waiting for the device."""
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor):
            self._tokens += ids.numel()

    def read_and_reset(self) -> dict[str, float]:
        """``tokens_per_second`` since the last call; ``memory_gb``, the GPU's peak, or what this process holds now."""
        now = time.perf_counter()
        rate = self._processes * self._tokens / max(now - self._since, 1e-9)
        self._tokens, self._since = 0, now
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
        else:
            memory = psutil.Process().memory_info().rss
        return {"tokens_per_second": round(rate, 1), "memory_gb": round(memory / 1e9, 3)}
