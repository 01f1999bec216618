"""The commands ``headedit spec …``: the files that say where a model's heads are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headedit.cli.help import Commands
from headedit.cli.json_output import Json, put_json, takes_json
from headedit.cli.next_step import print_next
from headedit.cli.shared import console, print_files, say, write_whole
from headedit.io.tables import markdown_table, rich_table

if TYPE_CHECKING:
    from headedit.edits.certificate import Certificate

app = Commands(
    name="spec",
    help="List, show, check and draft the specs that say where a model's heads are.",
    no_args_is_help=True,
)


@app.command("list")
def list_specs(
    types: Annotated[bool, typer.Option("--types", help="Show the name of every model type.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print only the counts, as Markdown.")] = False,
) -> None:
    """List the spec files: their model types and sites, whether an offset merges, and counts over all causal LMs.

    Example: `headedit spec list --types`
    """
    from headedit.specs.catalogue import catalogue, counts

    if markdown:
        print(markdown_table(["", "types"], counts(), left=2))
        return
    rows = []
    for entry in catalogue():
        spec = entry.spec
        names = ", ".join(entry.model_types) if types else str(len(entry.model_types))
        rows.append([_name(spec.source), names, ", ".join(spec.kinds()), spec.position, spec.offset])
    header = ["spec", "types", "sites", "position", "an offset merges"]
    console.print(rich_table(None, header, rows, left=None, framed=True))
    for what, number in counts():
        console.print(f"{what}: {number}")


@app.command("show")
def show_spec(
    model_type: Annotated[str, typer.Argument(help="Model type, as in a model's config, such as qwen3.")],
) -> None:
    """Print the spec file of a model type.

    Example: `headedit spec show qwen3`
    """
    from headedit.specs.registry import spec_of_type

    source = Path(spec_of_type(model_type).source)
    print(f"# {source}\n{source.read_text(encoding='utf-8')}", end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of spec files, for completion in an editor.

    Example: `headedit spec schema > spec.schema.json`
    """
    import json

    from headedit.specs.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
@takes_json
def check(
    model: Annotated[
        str | None, typer.Argument(help="A model: folder or hub id; or a model type, built tiny with random weights.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Spec file to check, instead of the one that headedit finds.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Check only this kind of site; may be repeated.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every causal-LM type, on tiny models.")] = False,
    as_json: Json = False,
) -> None:
    """Prove on a real model that its heads are where the spec says, and print the certificate.

    Example: `headedit spec check qwen3`
    """
    from headedit.errors import HeadEditError

    if every:
        _check_all()
    elif model is None:
        raise HeadEditError("Give a model or a type to check, or --all.")
    elif not _print_certificate(model, spec, kind or None):
        raise typer.Exit(1)


@app.command()
def draft(
    model: Annotated[str, typer.Argument(help="A model: folder or hub id.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.  [default: print it]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the spec even if it is not proved.")] = False,
) -> None:
    """Draft a spec for a model that has none, from a traced forward pass, and prove it.

    Example: `headedit spec draft ./my-model --output my_arch.yaml`
    """
    from headedit.errors import HeadEditError
    from headedit.hf.loading import load_model
    from headedit.specs.draft import draft_spec

    drafted = draft_spec(load_model(model, dtype="float32"))
    print(drafted.yaml, end="")
    for proof in drafted.proofs:
        for problem in proof.problems:
            say(f"problem: {escape(proof.path)}: {escape(problem)}")
    if not drafted.ok and not force:
        raise HeadEditError(
            "The drafted spec could not be proved on this model, so it is not written. Correct it by hand and check it "
            "with headedit spec check MODEL --spec FILE, or write it anyway with --force."
        )
    if output is not None:
        write_whole(output, drafted.yaml)
        print_files([output])
        print_next("spec", "check", model, "--spec", output)


def _print_certificate(model: str, spec: Path | None, kinds: list[str] | None) -> bool:
    from headedit.checks.certificate import certify
    from headedit.hf.loading import load_model
    from headedit.specs.tiny import tiny_configs, tiny_model

    is_type = model in tiny_configs() and not Path(model).is_dir()
    live = tiny_model(model) if is_type else load_model(model, dtype="float32")
    certificate = certify(live, spec, kinds=kinds)
    rows = []
    for site, proof in zip(certificate.sites, certificate.proofs, strict=True):
        proved = ", ".join(proof.proved) if proof.ok else "not probed" if not proof.probed else "WRONG"
        rows.append([site.path, site.heads, site.head_dim, site.position, proved])
    header = ["site", "heads", "width", "position", "proved under"]
    console.print(rich_table(certificate.model, header, rows, left=None, framed=True))
    for what, outcome in (
        ("spec", certificate.spec.source),
        ("a fresh edit and its removal", "exact" if certificate.exact else "not exact"),
        ("decoding with a cache", certificate.cache),
        ("gradients through checkpointing", certificate.checkpointing),
        ("an offset merges", certificate.spec.offset),
        *(("note", note) for note in dict.fromkeys(note for proof in certificate.proofs for note in proof.notes)),
        *(("problem", problem) for problem in certificate.problems),
    ):
        say(f"{what}: {escape(outcome)}")
    console.print(certificate.verdict)
    put_json(_record(model, certificate))
    given = [] if spec is None else ["--spec", spec]
    if not certificate.ok:
        print_next("spec", "draft", "MODEL" if is_type else model, "--output", "FILE")
    else:
        print_next("train", "--model", "MODEL" if is_type else model, *given, "--data", "FILE", "--output", "FOLDER")
    return certificate.ok


def _record(model: str, certificate: "Certificate") -> dict[str, Any]:
    """A certificate as plain data."""
    sites = [
        {
            "path": site.path,
            "kind": site.kind,
            "layer": site.layer,
            "heads": site.heads,
            "width": site.head_dim,
            "position": site.position,
            "proved_under": proof.proved,
            "probed": proof.probed,
            "ok": proof.ok,
            "problems": proof.problems,
            "notes": proof.notes,
        }
        for site, proof in zip(certificate.sites, certificate.proofs, strict=True)
    ]
    return {
        "model": model,
        "class": certificate.model,
        "spec": str(certificate.spec.source),
        "ok": certificate.ok,
        "verdict": certificate.verdict,
        "exact": certificate.exact,
        "cache": certificate.cache,
        "checkpointing": certificate.checkpointing,
        "offset_merges": certificate.spec.offset,
        "problems": certificate.problems,
        "sites": sites,
    }


def _check_all() -> None:
    from headedit.checks.certificate import certify
    from headedit.errors import HeadEditError
    from headedit.io.bars import tqdm
    from headedit.specs.tiny import tiny_configs, tiny_model

    groups: dict[str, list[str]] = {}
    for model_type in tqdm(sorted(tiny_configs()), desc="checking", unit="type", leave=False):
        try:
            certificate = certify(tiny_model(model_type))
        except HeadEditError as error:
            groups.setdefault("refused" if "cannot be edited" in str(error) else "not built", []).append(model_type)
            continue
        if certificate.ok:
            under = sorted({name for proof in certificate.proofs for name in proof.proved})
            groups.setdefault(f"proved under {' and '.join(under)}", []).append(model_type)
        elif any(proof.probed for proof in certificate.proofs):
            groups.setdefault("WRONG", []).append(model_type)
        else:
            groups.setdefault("not probed", []).append(model_type)
    rows = [
        [outcome, len(names), "" if len(names) > 40 else ", ".join(names)]
        for outcome, names in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]
    console.print(rich_table(None, ["certificate", "types", "which"], rows, left=None, framed=True))
    put_json({"ok": "WRONG" not in groups, "types": groups})
    if "WRONG" in groups:
        raise typer.Exit(1)


def _name(source: str) -> str:
    from headedit.specs.registry import packaged_folder

    path = Path(source)
    return path.name if path.parent == packaged_folder() else source
