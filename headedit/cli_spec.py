"""The commands ``headedit spec …``: what is known of where heads are."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="spec", help="Where the heads are: list and show the specs.", no_args_is_help=True, rich_markup_mode="markdown"
)
console = Console(highlight=False)


@app.command("list")
def list_specs(
    types: Annotated[bool, typer.Option("--types", help="Name every model type.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the counts alone, as Markdown.")] = False,
) -> None:
    """List the spec files, what they cover, how an offset can be merged, and the counts over all causal LMs.

    Example: `headedit spec list --types`
    """
    from headedit.specs.catalogue import catalogue, counts

    if markdown:
        print("\n".join(["| | types |", "|---|---|", *(f"| {what} | {number} |" for what, number in counts())]))
        return
    table = Table("spec", "types", "sites", "position", "an offset merges")
    for entry in catalogue():
        names = ", ".join(entry.model_types) if types else str(len(entry.model_types))
        table.add_row(_name(entry.spec.source), names, ", ".join(entry.spec.kinds()), entry.position, entry.offset)
    console.print(table)
    for what, number in counts():
        console.print(f"{what}: {number}")


@app.command()
def show(
    model_type: Annotated[str, typer.Argument(help="A config.model_type, such as qwen3.")],
) -> None:
    """Show the spec file of a model type.

    Example: `headedit spec show qwen3`
    """
    from headedit.specs.registry import spec_of_type

    source = Path(spec_of_type(model_type).source)
    print(f"# {source}\n{source.read_text(encoding='utf-8')}", end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of a spec file, with which an editor completes one.

    Example: `headedit spec schema > spec.schema.json`
    """
    import json

    from headedit.specs.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def _name(source: str) -> str:
    from headedit.specs.registry import packaged_folder

    path = Path(source)
    return path.name if path.parent == packaged_folder() else source
