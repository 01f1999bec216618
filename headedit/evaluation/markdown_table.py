"""Tables as Markdown."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table whose first ``left`` columns stand on the left and whose others stand on the right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    lines = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in [header, rule, *rows])
    return "\n".join(f"| {line} |" for line in lines)
