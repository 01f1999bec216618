"""The commands ``headedit import …``: edits and configs of other projects, in headedit's formats."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from headedit.cli.help import Commands
from headedit.cli.next_step import print_next
from headedit.cli.shared import Model, SpecFile, console, print_files, print_rows, say
from headedit.errors import HeadEditError

app = Commands(
    name="import",
    help="Convert what other projects made: edits that JoLA and LoFiT trained, configs of JoLA's runs.",
    no_args_is_help=True,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the edits.")]


@app.command()
def jola(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder or file that JoLA's code saved; it holds the whole model.")
    ],
    model: Model,
    output: Output,
    swap_gates: Annotated[
        bool, typer.Option("--swap-gates", help="log_g1 gates A and log_g2 gates v, the reverse of the released code.")
    ] = False,
    hardened: Annotated[bool, typer.Option("--hardened", help="Save only the open heads.")] = False,
    with_base: Annotated[
        Path | None,
        typer.Option(
            "--with-base", help="Also write the base, with the weights that the checkpoint has, to this folder."
        ),
    ] = None,
    released_rotary: Annotated[
        bool,
        typer.Option(
            "--released-rotary",
            help="Write that base with the rotary embedding of JoLA's Llama class: base 10000, no scaling.",
        ),
    ] = False,
    spec: SpecFile = None,
) -> None:
    """Import the edits from a checkpoint of JoLA's released code, and say how far its base weights moved.

    Example: `headedit import jola output/checkpoint-100 --model meta-llama/Llama-3.1-8B-Instruct --output edits`

    Example: `headedit import jola checkpoint-100 --model ./base --output edits --with-base ./base-as-trained`
    """
    from headedit.edits.files.storage import save
    from headedit.edits.importing.base_weights import compare_base
    from headedit.edits.importing.changed_base import change_base, has_tokenizer, write_base
    from headedit.edits.importing.load import import_jola
    from headedit.edits.importing.rotary import rotary_fault
    from headedit.hf.loading import load_model
    from headedit.io.files import check_writable
    from headedit.io.folders import check_free

    check_writable(output)
    if with_base is not None:
        check_writable(with_base)
        check_free(with_base)
    elif released_rotary:
        raise HeadEditError("--released-rotary: is about the base that --with-base FOLDER writes; give both.")
    base: Any = load_model(model, device="cpu")
    edits = import_jola(base, checkpoint, spec=spec, swap_gates=swap_gates, compare=False)
    comparison, fault = compare_base(base, checkpoint), rotary_fault(base)
    if released_rotary and fault is None:
        raise HeadEditError(
            f"--released-rotary: JoLA's code computes rotary embeddings of {model} as transformers does. Leave it out."
        )
    for line in [*comparison.lines(), *([fault] if fault else [])]:
        say(escape(line))
    if with_base is not None:
        edits.detach()
        change_base(base, checkpoint, comparison)
        source = str(checkpoint) if has_tokenizer(checkpoint) else model
        write_base(base, with_base, _tokenizer(source), released_rotary=released_rotary)
        edits = import_jola(base, checkpoint, spec=spec, swap_gates=swap_gates, compare=False)
    save(edits, output, hardened=hardened)
    print_rows("headedit import jola", _counted(edits.count_open()))
    print_files([output] if with_base is None else [output, with_base])
    if with_base is None and (comparison.moved or fault):
        extra = " --released-rotary" if fault else ""
        command = f"--with-base FOLDER{extra}"
        say(f"To have the base as it was trained, run this again with {command}.")
    print_next("eval", "--model", with_base or model, "--edits", output, "--data", "FILE")


@app.command()
def lofit(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Either .npy arrays: heads [K, 2], offsets [K, d] and optionally scales [K, d], in this order; or one "
            "safetensors file with tensors of these names; or a checkpoint saved by LoFiT's code."
        ),
    ],
    model: Model,
    output: Output,
    spec: SpecFile = None,
) -> None:
    """Import the edits from files of LoFiT's code.

    Example: `headedit import lofit top_heads.npy offsets.npy --model meta-llama/Llama-2-7b-hf --output edits`
    """
    from headedit.edits.files.storage import save
    from headedit.edits.importing.load import import_lofit, read_lofit
    from headedit.hf.loading import load_model
    from headedit.io.files import check_writable

    check_writable(output)
    heads, offsets, scales = read_lofit(files)
    edits = import_lofit(load_model(model, device="cpu"), heads, offsets, scales, spec=spec)
    save(edits, output)
    print_rows("headedit import lofit", _counted(edits.count_open()))
    print_files([output])
    print_next("eval", "--model", model, "--edits", output, "--data", "FILE")


@app.command("jola-config")
def jola_config(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE | -- FLAGS",
            help="A YAML file of JoLA's code or of its fork for OLMo-2; a shell script that calls run_jola.py; or, "
            "after --, the flags of run_jola.py.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file for the run; it must be new.")] = Path(
        "run.yaml"
    ),
) -> None:
    """Convert a config of JoLA's released code to a run of headedit, and say what becomes of each key.

    Example: `headedit import jola-config config.yaml --output run.yaml`

    Example: `headedit import jola-config -- --base_model_name llama3.1_8B_chat --data_path data --task commonsense`
    """
    from headedit.cli.shared import write_whole
    from headedit.io.tables import rich_table
    from headedit.training.config import RunConfig
    from headedit.training.config.released import read_flags, read_released
    from headedit.training.config.released.flags import command_in

    if output.exists():
        raise HeadEditError(f"{output}: already exists. Give another file as --output.")
    file = Path(source[0])
    if len(source) > 1 or source[0].startswith("--"):
        found = read_flags(source)
    elif file.suffix in (".yaml", ".yml"):
        found = read_released(file)
    else:
        found = read_flags(command_in(file), str(file))
    RunConfig.from_dict(found.run, f"{found.source}, converted")
    write_whole(output, found.text())
    rows = [(line.key, line.value, line.ours, line.reason) for line in found.lines]
    console.print(rich_table("headedit import jola-config", ["theirs", "value", "ours", ""], rows, left=None))
    print_files([output])
    print_next("train", output)


def _tokenizer(source: str) -> Any | None:
    """The tokenizer of a model or checkpoint; None where it has none."""
    from headedit.hf.loading import load_tokenizer

    try:
        return load_tokenizer(source)
    except HeadEditError:
        return None


def _counted(counts: dict[str, tuple[int, int]]) -> list[tuple[str, str]]:
    labels = {"any": "edited heads", "offset": "open offset gates", "scale": "open scale gates"}
    return [(label, f"{counts[key][0]} of {counts[key][1]}") for key, label in labels.items()]
