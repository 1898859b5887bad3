"""The report as Markdown, with its figures beside it."""

from __future__ import annotations

from collections.abc import Iterator

from .document import Block, Bullets, Document, Paragraph, Picture
from .tables import Table


def to_markdown(document: Document) -> str:
    """The whole document; figures are links into figures/."""
    return "\n".join(_lines(document)).rstrip() + "\n"


def table_lines(table: Table) -> Iterator[str]:
    """A table and its notes; quoted rows are in italics."""
    yield f"**{table.title}**"
    yield ""
    yield _row(table.header)
    yield _row(["--:" if place in table.numeric else "---" for place in range(len(table.header))])
    for row in table.rows:
        quoted = row.origin == "quoted"
        cells = [_escaped(cell) for cell in row.cells]
        yield _row([f"*{cell}*" if quoted and cell else cell for cell in cells])
    yield ""
    for note in table.notes:
        yield f"- {note}"
    if table.notes:
        yield ""


def _lines(document: Document) -> Iterator[str]:
    yield f"# {document.title}"
    yield ""
    yield document.subtitle
    for section in document.sections:
        yield ""
        yield f"## {section.title}"
        yield ""
        for block in section.blocks:
            yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from table_lines(block)
    elif isinstance(block, Picture):
        yield f"![{block.title}](figures/{block.name}.png)"
        yield ""
        yield f"**{block.title}.** {block.text} ([PDF](figures/{block.name}.pdf))"
        yield ""
    elif isinstance(block, Bullets):
        yield from (f"- {item}" for item in block.items)
        yield ""
    elif isinstance(block, Paragraph):
        yield f"> **{block.text}**" if block.warning else block.text
        yield ""


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*")
