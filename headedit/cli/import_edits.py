"""The commands ``headedit import …``: edits trained by other projects, saved in headedit's format."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.shared import Model, SpecFile, print_files, print_rows

app = typer.Typer(
    name="import",
    help="Convert edits that other projects trained: JoLA, LoFiT.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
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
    spec: SpecFile = None,
) -> None:
    """Import the edits from a checkpoint of JoLA's released code.

    Example: `headedit import jola output/checkpoint-100 --model meta-llama/Llama-3.1-8B-Instruct --output edits`
    """
    from headedit.edits.files.storage import save
    from headedit.edits.importing.load import import_jola
    from headedit.hf.loading import load_model
    from headedit.io.files import check_writable

    check_writable(output)
    edits = import_jola(load_model(model, device="cpu"), checkpoint, spec=spec, swap_gates=swap_gates)
    save(edits, output, hardened=hardened)
    print_rows("headedit import jola", _counted(edits.count_open()))
    print_files([output])


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


def _counted(counts: dict[str, tuple[int, int]]) -> list[tuple[str, str]]:
    labels = {"any": "edited heads", "offset": "open offset gates", "scale": "open scale gates"}
    return [(label, f"{counts[key][0]} of {counts[key][1]}") for key, label in labels.items()]
