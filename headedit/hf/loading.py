"""Loads models and tokenizers from a folder or the hub, with messages that say what is missing."""

import os
from typing import Any, Literal

import torch
from torch import nn

from headedit.errors import HeadEditError, released_name
from headedit.hf.config import check_decoder
from headedit.io import strict
from headedit.io.bars import bars_of_libraries
from headedit.io.describe import describe

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit", "int8", "int4", "gguf"]
BEST = "best"


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    device_map: str | dict[str, int | str] | None = None,
    quantization: Quantization | None = None,
    attn_implementation: str | None = None,
) -> nn.Module:
    """Loads a causal LM, in eval mode.

    Args:
        name: a folder that ``save_pretrained`` wrote, the id of a model on the hub, or a GGUF file in either, such as
            ``folder/model.gguf`` or ``owner/name/model.gguf``.
        revision: branch, tag or commit on the hub.
        dtype: ``auto`` for the dtype that the weights were saved in.
        device: such as ``cpu`` or ``cuda:0``; by default the GPU of this process, or the CPU where there is none.
        device_map: spreads the model over devices, as accelerate does; in place of ``device``.
        quantization: ``4bit`` (NF4, computed in ``dtype``, or bfloat16 for ``auto``) or ``8bit``, by bitsandbytes;
            ``int8`` (a scale per row) or ``int4`` (32 values share a scale; a byte each in memory) of the weights
            alone, by torchao; ``gguf`` to leave the weights of a GGUF file in their blocks where transformers can,
            which needs a kernel for the device. A GGUF file is unpacked by default.
        attn_implementation: a name that transformers knows; ``best`` for FlashAttention where it is installed and
            works on this model, and otherwise the default of transformers.

    Raises:
        HeadEditError: there is no such model, it is not a causal LM, the device does not exist, there is no such
            quantization, or the package that does it is not installed.
    """
    from transformers import AutoModelForCausalLM

    if quantization is not None:
        strict.convert(Quantization, quantization, "quantization")
    chosen = device or _usual_device()
    folder, gguf = split_gguf(name)
    options: dict[str, Any] = {"dtype": dtype, "revision": revision, **gguf}
    if gguf or quantization == "gguf":
        options |= _blocks(name, gguf, quantization)
    elif quantization is not None:
        options["quantization_config"] = _quantized(quantization, dtype)
        device_map = {"": chosen} if device_map is None else device_map
    if device_map is not None:
        options["device_map"] = device_map
    if attn_implementation not in (None, BEST):
        options["attn_implementation"] = attn_implementation
    try:
        model = _from_pretrained(AutoModelForCausalLM, folder, "model", shown=name, **options)
    except HeadEditError:
        _check_decoder_of(name, revision)
        raise
    if gguf and os.path.isdir(folder):
        model.config._name_or_path = str(name)  # from which the tokenizer and the config are found again
    if device_map is None:
        try:
            model.to(chosen)
        except (RuntimeError, AssertionError) as error:
            raise HeadEditError(f"The model cannot be moved to the device '{chosen}' ({_first_line(error)}).") from None
    model.eval()
    if attn_implementation == BEST:
        _try_flash_attention(model)
    assert isinstance(model, nn.Module)
    return model


def _check_decoder_of(name: str, revision: str | None) -> None:
    """Raises a HeadEditError where the config of a model that could not be loaded is that of an encoder and decoder."""
    try:
        config = load_config(name, revision=revision)
    except HeadEditError:
        return  # the error of the model itself says more
    check_decoder(config)


def load_config(name: str, *, revision: str | None = None) -> Any:
    """Loads the config of a model in a folder or on the hub, without its weights.

    Raises:
        HeadEditError: there is no config.
    """
    from transformers import AutoConfig

    folder, gguf = split_gguf(name)
    return _from_pretrained(AutoConfig, folder, "model", shown=name, revision=revision, **gguf)


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """Loads the tokenizer of a model in a folder or on the hub.

    Raises:
        HeadEditError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    folder, gguf = split_gguf(name)
    return _from_pretrained(AutoTokenizer, folder, "tokenizer", shown=name, revision=revision, **gguf)


def split_gguf(name: Any) -> tuple[Any, dict[str, str]]:
    """The folder or hub id of a GGUF file, and its name as transformers takes it; of any other name, itself and {}."""
    if not isinstance(name, str | os.PathLike) or not str(name).endswith(".gguf") or os.path.isdir(name):
        return name, {}
    folder, file = os.path.split(str(name))
    return folder or ".", {"gguf_file": file}


def _usual_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")  # set by accelerate and torchrun in each of several processes
    return "cuda" if rank is None else f"cuda:{rank}"


def _blocks(name: Any, gguf: dict[str, str], quantization: Quantization | None) -> dict[str, Any]:
    """The options for a GGUF file, unpacked, or in its blocks for the quantization ``gguf``."""
    if not gguf:
        raise HeadEditError(
            f"quantization: gguf is for a GGUF file, and '{name}' is none; give the file, as in folder/model.gguf."
        )
    if quantization not in (None, "gguf"):
        raise HeadEditError(
            f"quantization: found '{quantization}' for the GGUF file '{name}', expected gguf, to leave its weights in "
            "their blocks, or none, to unpack them."
        )
    try:
        from transformers import GgufConfig
    except ImportError:
        if quantization is None:
            return {}  # older versions of transformers always unpack
        raise HeadEditError(
            "quantization: gguf needs transformers 5.23 or newer: pip install -U transformers. Without quantization, "
            "the file is unpacked."
        ) from None
    return {"quantization_config": GgufConfig(dequantize=quantization is None)}


def _torchao(quantization: Quantization) -> Any:
    try:
        from torchao import quantization as torchao
        from torchao.quantization.granularity import PerGroup
    except ImportError as error:
        raise HeadEditError(
            f"An {quantization} model needs the package torchao: pip install 'headedit[quantized]'. "
            f"Importing it said: {_first_line(error)}"
        ) from None
    from transformers import TorchAoConfig

    if quantization == "int8":
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    int4: Any = getattr(torch, "int4")  # noqa: B009, the stubs of torch lack it
    return TorchAoConfig(torchao.IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(32)))


def _quantized(quantization: Quantization, dtype: Dtype) -> Any:
    if quantization in ("int8", "int4"):
        return _torchao(quantization)
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise HeadEditError(f"A {quantization} model needs the package bitsandbytes: pip install bitsandbytes.")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
    )


def _try_flash_attention(model: Any) -> None:
    from transformers.utils import is_flash_attn_2_available

    on_gpu = model.get_input_embeddings().weight.device.type == "cuda"
    if on_gpu and model.dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available():
        take_attention(model, "flash_attention_2")


def take_attention(model: Any, implementation: str) -> bool:
    """Switches a model to another attention implementation, if a short forward pass works with it.

    Returns:
        Whether it was switched; if not, the model is as it was.
    """
    before = model.config._attn_implementation
    device = model.get_input_embeddings().weight.device
    try:
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            model(input_ids=torch.ones(1, 8, dtype=torch.long, device=device), use_cache=False)
    except Exception:  # a type without it, a head too wide, a build for another GPU: each raises its own
        model.set_attn_implementation(before)
        return False
    return True


def _from_pretrained(auto: Any, name: Any, what: str, *, shown: Any, **options: Any) -> Any:
    if not isinstance(name, str | os.PathLike):
        raise HeadEditError(f"Expected the name or the folder of a {what}, found {describe(name)}.")
    try:
        with bars_of_libraries():
            return auto.from_pretrained(name, **options)
    except Exception as error:  # transformers, the hub client and safetensors each raise their own
        raise HeadEditError(
            f"No {what} could be loaded from '{shown}'.{released_name(shown)} Give a folder of save_pretrained, or "
            "the id of a causal LM on the Hugging Face hub. "
            f"The loader said: {type(error).__name__}: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
