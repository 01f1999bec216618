"""The command ``headedit merge``: a plain checkpoint with the edits in its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headedit.cli.next_step import print_next
from headedit.cli.shared import Dtype, SpecFile, print_files, print_rows

if TYPE_CHECKING:
    from headedit.edits import HeadEdits

NOTE_FILE = "headedit_merge.json"


def merge(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.")],
    edits: Annotated[str, typer.Argument(help="Folder or hub id of saved edits.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the merged model; it must be new or empty.")
    ],
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Dtype to load and save the model in.")] = Dtype.auto,
    device: Annotated[str, typer.Option("--device", help="Device to merge on.")] = "cpu",
    spec: SpecFile = None,
    safe: Annotated[bool, typer.Option("--safe/--no-safe", help="Refuse a result that has NaN or infinity.")] = True,
) -> None:
    """Merge edits into a model's weights and save a plain checkpoint, which loads without headedit.

    Example: `headedit merge ./my-model out ./my-model-merged`
    """
    from headedit.edits import load
    from headedit.hf.loading import load_model
    from headedit.io.folders import check_free
    from headedit.serving.merged import advice_on_biases

    check_free(output)
    base: Any = load_model(model, dtype=dtype.value, device=device)
    handle = load(base, edits, spec=spec)
    note = describe(handle, model, edits)
    biases = _biases(base)
    merged: Any = handle.merge_and_unload(safe_merge=safe)
    if merged is not base:
        note["rehomed_to"] = type(merged).__name__
    write_checkpoint(merged, _processor(model), note, output)
    advice = advice_on_biases(type(merged).__name__, _biases(merged) > biases)
    print_rows("headedit merge", _summary(note) + ([] if advice is None else [("when served", advice)]))
    print_files([output])
    print_next("eval", "--model", output, "--data", "FILE")


def describe(handle: "HeadEdits", model: str, edits: str) -> dict[str, Any]:
    """The note that is saved with the checkpoint: the base model, the open heads and the versions."""
    import torch
    import transformers

    from headedit.hf.names import portable_name
    from headedit.version import __version__

    opened = [
        {"site": site.name, "kind": site.kind, "vector": vector, "heads": edit.is_open(vector).nonzero()[:, 0].tolist()}
        for site, edit in handle.module.pairs()
        for vector in edit.vectors
    ]
    return {
        "base_model": portable_name(model),
        "base_class": type(handle.model).__name__,
        "edits": portable_name(edits),
        "rehomed_to": None,
        "open_heads": [row for row in opened if row["heads"]],
        "counts": handle.count_open(),
        "versions": {
            "headedit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def write_checkpoint(model: Any, processor: Any | None, note: dict[str, Any], output: Path) -> None:
    """Writes a checkpoint's folder in one step: first next to its place, then renamed.

    Raises:
        HeadEditError: it cannot be written, or the folder is not empty; nothing is left of the attempt.
    """
    from headedit.cli.shared import write_json, write_whole
    from headedit.io.folders import whole_folder

    with whole_folder(output, "the merged model") as scratch:
        model.save_pretrained(scratch)
        if processor is not None:
            processor.save_pretrained(scratch)
        write_json(scratch / NOTE_FILE, note)
        write_whole(scratch / "README.md", _readme(note))


def _biases(model: Any) -> int:
    return sum(name.endswith("bias") for name, _ in model.named_parameters())


def _processor(model: str) -> Any | None:
    """The processor of a multimodal model, otherwise the tokenizer; None if there is neither."""
    from transformers import AutoProcessor, AutoTokenizer

    from headedit.hf.loading import split_gguf

    folder, file = split_gguf(model)
    for auto in (AutoProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(folder, **file)
        except Exception:  # whatever transformers raises where there is none, or a package for images is missing
            continue
    return None


def _readme(note: dict[str, Any]) -> str:
    return (
        f"# {Path(note['base_model']).name}, edited\n\n{_sentence(note)}\n\n"
        f"`AutoModelForCausalLM.from_pretrained` loads it; headedit is not needed. Details: `{NOTE_FILE}`.\n"
    )


def _sentence(note: dict[str, Any]) -> str:
    heads, total = note["counts"]["any"]
    rehomed = "" if note["rehomed_to"] is None else f", exported as {note['rehomed_to']}"
    return (
        f"`{note['base_model']}` with the head edits of `{note['edits']}` ({heads} of {total} heads) merged into its "
        f"weights by headedit {note['versions']['headedit']}{rehomed}."
    )


def _summary(note: dict[str, Any]) -> list[tuple[str, str]]:
    heads, total = note["counts"]["any"]
    return [
        ("base model", f"{note['base_model']} ({note['base_class']})"),
        ("edits", note["edits"]),
        ("open heads", f"{heads} of {total}"),
        ("class", note["rehomed_to"] or note["base_class"]),
    ]
