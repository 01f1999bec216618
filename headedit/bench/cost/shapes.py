"""The models and batches that cost is measured on: Llamas with random weights in named shapes."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from headedit.errors import HeadEditError, suggest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama and a batch.

    Fields:
        layers, hidden, heads: of the model.
        kv_heads: key and value heads; as many as heads where it is None.
        intermediate: width of the MLP; 4 times that of the model where it is None.
        vocab: size of the vocabulary.
        batch, tokens: sequences, and tokens in each of them.
        dtype: of the weights: float32, bfloat16 or float16.
        device: such as cpu or cuda:0.
        attention: as transformers names it, such as sdpa, which is FlashAttention where PyTorch has it, or
            flash_attention_2.
    """

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int | None = None
    intermediate: int | None = None
    vocab: int = 1000
    batch: int = 4
    tokens: int = 128
    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise HeadEditError(
                f"hidden: found {self.hidden}, expected a multiple of {2 * self.heads}, for {self.heads} heads of "
                "even width."
            )
        if self.heads % (self.kv_heads or self.heads):
            raise HeadEditError(f"heads: found {self.heads}, expected a multiple of {self.kv_heads} key heads.")
        if self.dtype not in DTYPES:
            raise HeadEditError(f"dtype: found '{self.dtype}', expected one of {', '.join(DTYPES)}.")


SHAPES = {
    "tiny": Shape(),
    "125M": Shape(layers=12, hidden=768, heads=12, intermediate=2048, vocab=32_000),
    "1B": Shape(layers=16, hidden=2048, heads=32, kv_heads=8, intermediate=8192, vocab=128_256),
    "8B": Shape(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14_336, vocab=128_256),
}
"""Shapes by name; the last two are those of Llama 3.2 1B and Llama 3.1 8B."""


def build(shape: Shape) -> nn.Module:
    """Builds a frozen model of a shape on its device, in eval mode, with the same weights at every call.

    Raises:
        HeadEditError: the device or the attention is unavailable.
    """
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate or 4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=max(512, 2 * shape.tokens),
        dtype=DTYPES[shape.dtype],
        attn_implementation=shape.attention,
    )
    _check_device(shape.device)
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(shape.device):
        torch.manual_seed(0)
        torch.set_default_dtype(DTYPES[shape.dtype])  # no weight is made in float32 first
        try:
            model: nn.Module = LlamaForCausalLM(config)
        except (ImportError, ValueError) as error:
            raise HeadEditError(
                f"attention: '{shape.attention}' is unavailable ({str(error).splitlines()[0]})."
            ) from None
        finally:
            torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def random_ids(vocab: int, batch: int, tokens: int, device: str | torch.device) -> Tensor:
    """Token ids, [batch, tokens], the same at every call."""
    return torch.randint(0, vocab, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(device)


def check_names(given: Collection[str] | None, known: Collection[str], option: str) -> None:
    """Raises a HeadEditError if a name is not known."""
    for name in given or ():
        if name not in known:
            raise HeadEditError(f"{option}: found '{name}'.{suggest(name, known)}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HeadEditError(f"device: '{device}' cannot be used ({str(error).splitlines()[0]}).") from None
