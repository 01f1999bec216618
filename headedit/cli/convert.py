"""The command ``headedit convert``: edits in a form that other tools read next to the unedited base model."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from headedit.cli.next_step import say_next
from headedit.cli.shared import Dtype, SpecFile, console, print_files
from headedit.errors import HeadEditError


class Form(str, Enum):
    """The forms that edits can be written in."""

    peft = "peft"
    lora = "lora"
    control_vector = "control-vector"


def convert(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.")],
    edits: Annotated[str, typer.Argument(help="Folder or hub id of saved edits.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for an adapter, or GGUF file for a control vector.")
    ],
    to: Annotated[
        Form,
        typer.Option(
            "--to",
            help="lora: for servers of LoRAs such as vLLM, of a scale alone. control-vector: for llama.cpp, of an "
            "offset alone. peft: for PEFT, of any edits.",
        ),
    ],
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Write a control vector that is not quite the edits, and say how far.")
    ] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Dtype to load the model in.  [default: auto; control-vector: float32]"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device to load the model on.")] = "cpu",
    spec: SpecFile = None,
) -> None:
    """Write edits in a form that other tools read next to the unedited base model; `headedit merge` needs no such tool.

    Example: `headedit convert ./my-model out ./my-lora --to lora`
    """
    from headedit.edits import load
    from headedit.hf.loading import load_model

    if output.exists() and not (output.is_dir() and not any(output.iterdir()) and to is not Form.control_vector):
        raise HeadEditError(f"{output}: already exists. Choose another name.")
    if approximate and to is not Form.control_vector:
        raise HeadEditError(f"--approximate: only for --to {Form.control_vector.value}; an adapter is always exact.")
    chosen = dtype or (Dtype.float32 if to is Form.control_vector else Dtype.auto)
    base: Any = load_model(model, dtype=chosen.value, device=device)
    handle = load(base, edits, spec=spec)
    if to is Form.control_vector:
        off = handle.to_control_vector(output, approximate=approximate)
        console.print(f"off by {off:.1%} of what the edits change" if off else "the same function as the edits")
    else:
        handle.to_peft(output, form="lora" if to is Form.lora else "auto")
    print_files([output])
    say_next(
        {
            Form.lora: f"vllm serve {model} --enable-lora --lora-modules edits={output}",
            Form.control_vector: f"llama-cli --model MODEL.gguf --control-vector {output}",
            Form.peft: f"in Python, peft.PeftModel.from_pretrained(model, {str(output)!r})",
        }[to]
    )
