"""The command ``headedit errors``: causes and remedies of a family of messages, from the page of the documentation."""

import re
from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.shared import say_plain, tell_error
from headedit.errors import FAMILIES, HeadEditError, suggest


def errors(
    family: Annotated[
        str | None, typer.Argument(help="Family that an error names. Without it, all of them are listed.")
    ] = None,
) -> None:
    """Explain an error: the causes of a family of messages, and what to do about each.

    Example: `headedit errors saved-edits`
    """
    if family is None:
        say_plain("\n".join(FAMILIES))
        return
    if family not in FAMILIES:
        raise HeadEditError(f"There is no family of errors '{family}'.{suggest(family, FAMILIES, title='Families')}")
    say_plain(explanation(family))


def explanation(family: str) -> str:
    """The part of the page of errors that is about a family, as plain text."""
    parts = re.split(r"^## (.*)\n", page().read_text(encoding="utf-8"), flags=re.MULTILINE)
    bodies = {slug(title): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", bodies[family])  # links
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text).strip()


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def page() -> Path:
    """The page of errors: inside the installed package, or in the docs of a checkout."""
    package = Path(__file__).parent.parent
    for file in (package / "errors.md", package.parent / "docs" / "errors.md"):
        if file.is_file():
            return file
    raise HeadEditError(f"The page errors.md is missing next to {package}; reinstall headedit.")


def point_to_page(error: HeadEditError) -> None:
    """Prints, after the message of an error, the command that explains it."""
    if error.family is not None:
        tell_error(f"To read more: headedit errors {error.family}")
