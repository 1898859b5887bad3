"""The report as one HTML file: pictures inlined, no other host, light and dark, narrow and wide."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .document import Block, Bullets, Document, Paragraph, Picture
from .tables import Table, TableRow

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1f2328; --soft: #59636e; --rule: #d8dee4; --quoted: #f5f6f8;
  --accent: #0b62b0; --warn: #fff4e0; --warn-rule: #d98b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --ink: #e4e7ea; --soft: #9aa4ae; --rule: #343b42; --quoted: #1c2126;
    --accent: #79b8ff; --warn: #33270f; --warn-rule: #d98b00;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 {
  font-size: 1.2rem; margin: 2.6rem 0 0.8rem; padding-top: 0.9rem;
  border-top: 1px solid var(--rule);
}
h3 { font-size: 1rem; margin: 1.6rem 0 0.5rem; }
p, ul { max-width: 46rem; }
.subtitle, .notes, figcaption { color: var(--soft); }
.notes, figcaption { font-size: 0.85rem; line-height: 1.45; }
.notes { padding-left: 1.1rem; }
.notes li, li { overflow-wrap: anywhere; }
a { color: var(--accent); }
nav { font-size: 0.9rem; margin: 1rem 0; display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; }
code { font-size: 0.88em; overflow-wrap: anywhere; }
.warning {
  background: var(--warn); border-left: 4px solid var(--warn-rule); padding: 0.7rem 0.9rem;
  border-radius: 3px;
}
.scroll { overflow-x: auto; margin: 0.4rem 0; }
table {
  border-collapse: collapse; font-size: 0.86rem; line-height: 1.35;
  font-variant-numeric: tabular-nums;
}
th, td {
  padding: 0.36rem 0.6rem; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top;
}
th { font-weight: 600; border-bottom: 2px solid var(--rule); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td:last-child { min-width: 10rem; }
td.number:last-child { min-width: 0; }
tr.quoted td { background: var(--quoted); color: var(--soft); font-style: italic; }
tr.measured td:first-child { font-weight: 600; }
td:first-child, th:first-child {
  position: sticky; left: 0; background: var(--page); z-index: 1; white-space: nowrap;
}
tr.quoted td:first-child { background: var(--quoted); }
figure { margin: 1.4rem 0; }
figure .scroll { background: #ffffff; border: 1px solid var(--rule); border-radius: 6px; }
figure img { display: block; width: 100%; max-width: 56rem; margin: 0 auto; height: auto; }
figcaption { margin-top: 0.5rem; max-width: 46rem; }
figcaption b { color: var(--ink); }
@media (max-width: 40rem) {
  body { padding: 1rem 0.9rem 3rem; }
  h1 { font-size: 1.4rem; }
  figure img { width: 40rem; max-width: none; }
  table { font-size: 0.8rem; }
  td:first-child, th:first-child { max-width: 8.5rem; white-space: normal; }
}
"""


def to_html(document: Document, figures: Path) -> str:
    """The whole document; `figures` holds the pictures' PNG files."""
    links = "".join(
        f'<a href="#{_anchor(section.title)}">{html.escape(section.title)}</a>'
        for section in document.sections
    )
    body = "\n".join(
        f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>\n'
        + "\n".join(_block(block, figures) for block in section.blocks)
        for section in document.sections
    )
    title = html.escape(document.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="subtitle">{_text(document.subtitle)}</p>\n'
        f"<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, figures: Path) -> str:
    if isinstance(block, Table):
        return "\n".join(_table(block))
    if isinstance(block, Picture):
        return _picture(block, figures)
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block.items) + "</ul>"
    assert isinstance(block, Paragraph)
    kind = ' class="warning"' if block.warning else ""
    return f"<p{kind}>{_text(block.text)}</p>"


def _table(table: Table) -> Iterator[str]:
    yield f"<h3>{html.escape(table.title)}</h3>"
    yield '<div class="scroll" tabindex="0"><table><thead><tr>'
    for place, name in enumerate(table.header):
        number = ' class="number"' if place in table.numeric else ""
        yield f'<th scope="col"{number}>{html.escape(name)}</th>'
    yield "</tr></thead><tbody>"
    yield from (_row(row, table.numeric) for row in table.rows)
    yield "</tbody></table></div>"
    if table.notes:
        notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
        yield f'<ul class="notes">{notes}</ul>'


def _row(row: TableRow, numeric: frozenset[int]) -> str:
    cells = "".join(
        f'<td class="number">{html.escape(cell)}</td>'
        if place in numeric
        else f"<td>{html.escape(cell)}</td>"
        for place, cell in enumerate(row.cells)
    )
    return f'<tr class="{row.origin}">{cells}</tr>'


def _picture(picture: Picture, figures: Path) -> str:
    source = _inlined(figures / f"{picture.name}.png", picture.photographic)
    return (
        f'<figure><div class="scroll" tabindex="0"><img alt="{html.escape(picture.title)}" '
        f'src="{source}"></div><figcaption><b>{html.escape(picture.title)}.</b> '
        f"{_text(picture.text)}</figcaption></figure>"
    )


def _inlined(path: Path, photographic: bool) -> str:
    """A data: address; photos as JPEG, a third of the bytes."""
    content, kind = path.read_bytes(), "png"
    if photographic:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
        content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _text(text: str) -> str:
    """Escaped, with `code` between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
