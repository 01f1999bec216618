"""Tiny random models, offline, on one thread."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import matplotlib
import pytest
import torch
from tiny import tiny_model
from transformers import PreTrainedModel
from transformers.utils import logging

matplotlib.use("Agg")
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny models gain nothing from more, and lose when other work runs next to them


def pytest_collection_finish() -> None:
    """Keeps the libraries and thousands of tests out of the garbage collection that every training ends with."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same gates are drawn in a test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> None:
    """torch.compile as in a new process: other tests do not count towards its limit of recompilations."""
    torch.compiler.reset()


@pytest.fixture
def llama() -> PreTrainedModel:
    """A fresh Llama of 2 layers with 4 heads of width 16, in eval mode."""
    return tiny_model("llama")


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids, [2, 7]."""
    return torch.randint(3, 128, (2, 7), generator=torch.Generator().manual_seed(5))
