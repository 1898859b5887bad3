"""The report's content before it has a form: sections of paragraphs, tables, figures, lists."""

from __future__ import annotations

from dataclasses import dataclass

from .tables import Table


@dataclass(frozen=True)
class Paragraph:
    """Plain text; `words` between backticks are code. A warning stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A figure that was written as figures/NAME.png and .pdf.

    photographic: it holds photos, so a page may inline it as a JPEG.
    """

    name: str
    title: str
    text: str
    photographic: bool = False


Block = Paragraph | Bullets | Picture | Table


@dataclass(frozen=True)
class Section:
    """A heading and what follows it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A title, a line under it, sections."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
