"""What edits cost: a training step and a forward pass beside the same model without them.

The limit of a training step is the same model with one trainable vector at the first layer's output
projection, which any method that edits the first layer has to pay. Runs of all variants alternate in one
process, and medians are compared, since single timings are noisy.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from headedit.edits import attach
from headedit.specs import find_sites, find_spec


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model and the batch to measure with."""

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    batch: int = 4
    tokens: int = 128


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians in milliseconds.

    Fields:
        step_limit, step_edited: a training step of the limit, and with edits on every head.
        forward_bare, forward_edited: a forward pass in eval mode, bare and with edits.
        repeats: runs of each.
        device: what it ran on.
        shape: the model and batch.
    """

    step_limit: float
    step_edited: float
    forward_bare: float
    forward_edited: float
    repeats: int
    device: str
    shape: Shape

    @property
    def step_ratio(self) -> float:
        """A training step with edits over the limit's."""
        return self.step_edited / self.step_limit

    @property
    def forward_ratio(self) -> float:
        """A forward pass with edits over the bare model's."""
        return self.forward_edited / self.forward_bare

    def to_dict(self) -> dict[str, Any]:
        """Fields and ratios as plain data."""
        return {**asdict(self), "step_ratio": self.step_ratio, "forward_ratio": self.forward_ratio}


def measure_cost(shape: Shape | None = None, *, repeats: int = 30, device: str = "cpu", progress: bool = True) -> Cost:
    """Measures on a Llama with random weights.

    Args:
        shape: the model and the batch; by default 8 layers of width 512, batch 4 × 128.
        repeats: timed runs of each variant, after three that are not counted.
        device: where to run.
        progress: show a bar.
    """
    shape = Shape() if shape is None else shape
    torch.manual_seed(0)
    limit, edited = _model(shape, device), _model(shape, device)
    vector = _limit_vector(limit)
    edits = attach(edited)
    ids = torch.randint(0, 1000, (shape.batch, shape.tokens), device=device)
    steps = {
        "step_limit": _training_step(limit, [vector], ids),
        "step_edited": _training_step(edited, list(edits.module.parameters()), ids),
    }
    medians = _medians(steps, repeats, device, "training step", progress)
    bare = _model(shape, device)
    forwards = {"forward_bare": _forward(bare, ids), "forward_edited": _forward(edited, ids)}
    medians |= _medians(forwards, repeats, device, "forward", progress)
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"{device}, {_threads()}"
    return Cost(**medians, repeats=repeats, device=name, shape=shape)


def _model(shape: Shape, device: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max(512, shape.tokens),
    )
    return LlamaForCausalLM(config).to(device)


def _limit_vector(model: nn.Module) -> nn.Parameter:
    model.requires_grad_(False)
    first = find_sites(model, find_spec(model))[0]
    vector = nn.Parameter(torch.zeros(first.width, device=next(model.parameters()).device))
    first.module.register_forward_pre_hook(lambda module, args: (args[0] + vector,))
    return vector


def _training_step(model: nn.Module, parameters: list[nn.Parameter], ids: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _forward(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(input_ids=ids)

    return forward


def _medians(
    variants: dict[str, Callable[[], None]], repeats: int, device: str, what: str, progress: bool
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    warm_up = 3
    for i in tqdm(range(warm_up + repeats), desc=what, disable=not progress, leave=False):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            if i >= warm_up:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count != 1 else ''}"
